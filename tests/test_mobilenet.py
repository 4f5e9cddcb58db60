"""MobileNets: their ImageNet answers on photographs, and weight files, good and damaged."""

import json
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from wsss_jax.backbones import BACKBONES
from wsss_jax.backbones.mobilenet import MobileNetV1, MobileNetV2
from wsss_jax.formats import npz
from wsss_jax.weights.loading import load

V1 = "mobilenet_v1_1.0_224_quant_embedding_extractor"
V2 = "mobilenet_v2_1.0_224_quant"
V2_INT8 = "tf2_mobilenet_v2_1.0_224_ptq"
FILES = {V1: (MobileNetV1, "float"), V2: (MobileNetV2, "float"), V2_INT8: (MobileNetV2, "int8")}

# What ImageNet calls the animal of these photographs; several words where several are right.
ANSWERS = {
    "2007_001299": ("ox", "bison", "water buffalo"),
    "2007_000904": ("ox", "oxcart"),
    "2007_000799": ("sorrel",),
    "2007_001763": ("Siamese cat", "Egyptian cat"),
    "2007_001594": ("malamute", "Siberian husky", "Weimaraner"),
}


def forward(module, images):
    graph, state = nnx.split(module)
    return jax.jit(lambda state, x: nnx.merge(graph, state)(x)[-1])(state, images)


@cache
def imported(weights, name):
    kind, suffix = FILES[name]
    module = kind(rngs=nnx.Rngs(0), output_stride=32)
    load(module, weights / f"{name}_{suffix}.npz")
    return module


def photographs(shared, ids):
    """Images as the public networks were fed: 224×224, x / 127.5 - 1."""
    folder = shared / "data/voc12_animals/JPEGImages"
    pixels = []
    for id in ids:
        with Image.open(folder / f"{id}.jpg") as picture:
            pixels.append(np.asarray(picture.resize((224, 224), Image.Resampling.BILINEAR)))
    return jnp.asarray(np.stack(pixels), jnp.float32) / 127.5 - 1


@pytest.mark.parametrize("name", [V2, V2_INT8])
def test_photographs_get_their_imagenet_answers(shared, name):
    names = (shared / "weights/imagenet_labels_1001.txt").read_text().splitlines()
    features = forward(imported(shared / "weights", name), photographs(shared, ANSWERS))
    with np.load(shared / "weights" / f"{name}_{FILES[name][1]}.npz") as file:
        head = {key.removeprefix("52_conv/"): file[key] for key in file if "52_conv/" in key}
    kernel = head["kernel"] if "kernel" in head else head["kernel_q"] * head["scale"]
    logits = (
        np.asarray(features.mean(axis=(1, 2))) @ kernel.reshape(-1, 1001) + head["bias"].ravel()
    )
    for id, row in zip(ANSWERS, logits, strict=True):
        top = [names[i].split(",")[0] for i in row.argsort()[::-1][:5]]
        assert set(top) & set(ANSWERS[id]), f"{id}: {top}"


def test_embedding_of_v1_brings_like_animals_together(shared):
    """The V1 file has no classes; a photograph must be most like the others of its animal."""
    listed = json.loads((shared / "data/voc12_animals/image_labels.json").read_text())
    alone = {id: labels[0] for id, labels in listed["image_labels"].items() if len(labels) == 1}
    kinds = ("cat", "cow", "dog", "horse", "sheep")
    ids = [id for kind in kinds for id in sorted(i for i in alone if alone[i] == kind)[:12]]
    truth = np.array([kinds.index(alone[id]) for id in ids])
    features = forward(imported(shared / "weights", V1), photographs(shared, ids))
    rows = np.asarray(features.mean(axis=(1, 2)))
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    likeness, others = rows @ rows.T, ~np.eye(len(ids), dtype=bool)
    same = (truth[:, None] == np.arange(len(kinds)))[None] & others[..., None]
    nearest = ((likeness[..., None] * same).sum(axis=1) / same.sum(axis=1)).argmax(axis=1)
    # 0.67 here, 0.71 for MobileNetV2, 0.20 with random weights.
    assert (nearest == truth).mean() >= 0.55


@pytest.mark.parametrize("name", ["mobilenet_v1", "mobilenet_v2"])
def test_output_stride_16_holds_the_cells_of_stride_32(name):
    """Dilation adds cells between those of the strided network, and changes none of them."""
    coarse, fine = (BACKBONES[name](rngs=nnx.Rngs(0), output_stride=s) for s in (32, 16))
    images = jax.random.normal(jax.random.key(1), (1, 64, 96, 3))
    wide = forward(fine, images)
    assert (coarse.strides[-1], fine.strides[-1]) == (32, 16)
    np.testing.assert_allclose(wide[:, 1::2, 1::2], forward(coarse, images), atol=1e-4)


def test_published_parameter_counts():
    # 4,231,976 and 3,504,872 as published, with 1000 classes and BatchNorm; folded
    # BatchNorm leaves one bias per channel instead of two parameters.
    sizes = {}
    for kind in (MobileNetV1, MobileNetV2):
        shapes = nnx.state(nnx.eval_shape(lambda kind=kind: kind(rngs=nnx.Rngs(0))), nnx.Param)
        sizes[kind.__name__] = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes))
    assert sizes == {
        "MobileNetV1": 4_231_976 - 1024 * 1000 - 1000 - 10_944,
        "MobileNetV2": 3_504_872 - 1280 * 1000 - 1000 - 17_056,
    }


def written(path, module, **changes):
    """A weight file that fits the module, but for the changes (None removes a name)."""
    params = {"/".join(map(str, k)): v for k, v in nnx.to_flat_state(nnx.state(module, nnx.Param))}
    arrays = {
        f"{layer}/{part}": np.full(params[f"{target}/{part}"].shape, n, np.float32)
        for n, (layer, target) in enumerate(module.file_names().items())
        if target is not None
        for part in ("kernel", "bias")
    }
    arrays.update(changes)
    np.savez(path, **{name: value for name, value in arrays.items() if value is not None})
    return path


def test_a_fitting_file_fills_every_parameter(tmp_path):
    module = MobileNetV1(rngs=nnx.Rngs(0))
    load(module, written(tmp_path / "w.npz", module))
    assert float(module.stem.bias[0]) == 0 and float(module.blocks[12].project.kernel[0, 0]) == 26
    leaves = jax.tree.leaves(nnx.state(module, nnx.Param))
    assert all(bool((leaf == leaf.ravel()[0]).all()) for leaf in leaves)


def test_a_file_of_small_integers_is_scaled(tmp_path):
    module = MobileNetV1(rngs=nnx.Rngs(0))
    path, rng = written(tmp_path / "w.npz", module), np.random.default_rng(0)
    with np.load(path) as file:
        arrays = dict(file)
    shape = arrays.pop("02_conv/kernel").shape
    whole = rng.integers(-127, 128, shape, np.int8)
    scale = rng.random(shape[-1], np.float32)
    np.savez(path, **arrays, **{"02_conv/kernel_q": whole, "02_conv/scale": scale})
    load(module, path)
    kernel = module.blocks[0].project.kernel[...]
    np.testing.assert_array_equal(kernel, whole.astype(np.float32) * scale)


def test_every_misfit_is_told_at_once_and_nothing_changes(tmp_path):
    module = MobileNetV1(rngs=nnx.Rngs(0))
    changes = {
        "02_conv/kernel": np.zeros((64, 32), np.float32),
        "05_dw/bias": None,
        "extra/kernel": np.zeros(3, np.float32),
    }
    path = written(tmp_path / "w.npz", module, **changes)
    before = np.asarray(module.stem.kernel[...])
    with pytest.raises(ValueError) as caught:
        load(module, path)
    text = str(caught.value)
    assert "02_conv/kernel: shape (64, 32) in the file, the network has (32, 64)" in text
    assert "05_dw/bias: missing" in text and "extra/kernel: in the file, used by nothing" in text
    np.testing.assert_array_equal(module.stem.kernel[...], before)


def test_files_that_are_no_weights_are_refused(tmp_path):
    module = MobileNetV1(rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="no such weight file"):
        load(module, tmp_path / "none.npz")
    with pytest.raises(ValueError, match="no public weights"):
        load(BACKBONES["tiny"](rngs=nnx.Rngs(0)), written(tmp_path / "w.npz", module))
    broken = tmp_path / "broken.npz"
    broken.write_bytes(b"PK\x03\x04 not a zip file")
    with pytest.raises(ValueError, match=r"broken\.npz"):
        load(module, broken)
    np.savez(tmp_path / "objects.npz", a=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="wanted kind"):
        npz.read(tmp_path / "objects.npz", {"a": "O"})
