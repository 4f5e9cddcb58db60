"""Weight files written byte by byte, read back, damaged, and refused where they name programs."""

import io
import json
import struct
import sys
import types
import zipfile

import jax
import numpy as np
import pytest
from flax import nnx
from golden_weights import filled

from wsss_jax.backbones import BACKBONES, resnet, vit
from wsss_jax.cli import main
from wsss_jax.models import build, recognise
from wsss_jax.ops import positions as vit_positions
from wsss_jax.weights import import_hub, import_names
from wsss_jax.weights.import_files import read_arrays
from wsss_jax.weights.loading import load, save

VALUES = np.arange(12, dtype=np.float32)


def text(word):
    return b"X" + struct.pack("<I", len(word)) + word.encode()


def number(n):
    return b"J" + struct.pack("<i", n)


def numbers(values):
    return b"(" + b"".join(map(number, values)) + b"t"


def tensor(key="0", shape=(3, 4), strides=(4, 1), *, offset=0, count=12, kind="FloatStorage"):
    """A tensor as torch.save writes it."""
    storage = text("storage") + b"ctorch\n" + kind.encode() + b"\n" + text(key) + text("cpu")
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n((" + storage + number(count) + b"tQ"
        + number(offset) + numbers(shape) + numbers(strides)
        + b"\x89ccollections\nOrderedDict\n)RtR"
    )  # fmt: skip


def nest(**parts):
    """A dictionary, as a pickle without its end."""
    items = b"".join(text(name) + part for name, part in parts.items())
    return b"ccollections\nOrderedDict\n)R(" + items + b"u"


def archive(path, pickled, storages=None, packed=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", packed) as file:
        file.writestr("run/data.pkl", b"\x80\x02" + pickled + b".")
        file.writestr("run/byteorder", b"little")
        for key, values in ({"0": VALUES} if storages is None else storages).items():
            file.writestr(f"run/data/{key}", values.tobytes())
    return path


def stream(path, pickled, storages):
    """The layout before PyTorch 1.6."""
    magic = b"\x80\x02\x8a\x0a" + (0x1950A86A20F9469CFC6C).to_bytes(10, "little") + b"."
    version = b"\x80\x02" + number(1001) + b"."
    system = b"\x80\x02}" + text("little_endian") + b"\x88s."
    keys = b"\x80\x02](" + b"".join(map(text, storages)) + b"e."
    values = (struct.pack("<q", v.size) + v.tobytes() for v in storages.values())
    path.write_bytes(
        magic + version + system + b"\x80\x02" + pickled + b"." + keys + b"".join(values)
    )
    return path


def test_pytorch_archives_and_streams_are_read_without_pytorch(tmp_path):
    half = np.array([1.5, -2.25], np.float16)
    upper = (np.array([1.5, -2.0], np.float32).view(np.uint32) >> 16).astype(np.uint16)
    pickled = nest(
        plain=tensor(),
        turned=tensor(shape=(4, 3), strides=(1, 4)),
        part=tensor(shape=(2,), strides=(4,), offset=3),
        one=tensor(shape=(), strides=(), offset=7),
        half=tensor("1", (2,), (1,), count=2, kind="HalfStorage"),
        coarse=tensor("2", (2,), (1,), count=2, kind="BFloat16Storage"),
    )
    storages = {"0": VALUES, "1": half, "2": upper}
    square = VALUES.reshape(3, 4)
    for path in (
        archive(tmp_path / "new.pth", pickled, storages),
        stream(tmp_path / "old.pth", pickled, storages),
    ):
        found = read_arrays(path)
        np.testing.assert_array_equal(found["plain"], square)
        np.testing.assert_array_equal(found["turned"], square.T)
        np.testing.assert_array_equal(found["part"], [3, 7])
        assert found["one"] == 7 and found["one"].shape == ()
        np.testing.assert_array_equal(found["half"], half)
        np.testing.assert_array_equal(found["coarse"], [1.5, -2.0])


def test_the_state_dict_is_found_inside_a_checkpoint(tmp_path):
    pickled = nest(epoch=number(3), state_dict=nest(w=tensor()), ema=nest(w=tensor()))
    assert list(read_arrays(archive(tmp_path / "a.pth", pickled))) == ["w"]
    several = nest(a=nest(w=tensor()), b=nest(w=tensor()))
    with pytest.raises(ValueError, match=r"no single dictionary of tensors among \['a', 'b'\]"):
        read_arrays(archive(tmp_path / "b.pth", several))


@pytest.mark.parametrize(
    "pickled, message",
    [
        (b"cos\nsystem\n(" + text("true") + b"tR", "names os.system"),
        (nest(w=b"cbuiltins\neval\n(" + text("1") + b"tR"), "names builtins.eval"),
        (b"\x8c\x02os\x8c\x06system\x93", "names os.system"),
        (nest(w=tensor(kind="UntypedStorage")), "type torch.UntypedStorage"),
        (b"(ios\nsystem\n", "uses INST"),
        (nest(w=tensor(shape=(3, 5))), "reaches value 12 of a storage of 12"),
        (nest(w=tensor(strides=(4, -1))), "strides"),
        (nest(w=tensor(shape=(2**30, 4), strides=(0, 1))), "in all view storages of 48"),
        (nest(w=tensor(count=13)), "has 48 bytes"),
        (nest(w=tensor("9")), "data/9"),
        (b"](K\x01e", "holds a list"),
        (b"K\x01K\x02s", "IndexError|pop|list index|index|dictionary"),
        (b"", "pop from empty|cannot be read"),
    ],
)
def test_nothing_but_tensors_within_bounds_is_read(tmp_path, pickled, message):
    with pytest.raises(ValueError, match=message):
        read_arrays(archive(tmp_path / "a.pth", pickled))


def test_compressed_and_cut_files_are_refused(tmp_path):
    path = archive(tmp_path / "a.pth", nest(w=tensor()), packed=zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match="not compressed"):
        read_arrays(path)
    whole = stream(tmp_path / "b.pth", nest(w=tensor()), {"0": VALUES}).read_bytes()
    for end in (0, 5, len(whole) // 2, len(whole) - 3):
        path.write_bytes(whole[:end])
        with pytest.raises(ValueError, match="cannot be read as a PyTorch file"):
            read_arrays(path)


def safe(path, header, values):
    head = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(head)) + head + values)
    return path


def test_safetensors_are_read_and_checked(tmp_path):
    path = tmp_path / "a.safetensors"
    good = {"dtype": "F32", "shape": [3, 4], "data_offsets": [0, 48]}
    last = {"dtype": "BF16", "shape": [1], "data_offsets": [48, 50]}
    values = VALUES.tobytes() + b"\xc0\x3f"
    found = read_arrays(safe(path, {"__metadata__": {"a": "b"}, "w": good, "b": last}, values))
    np.testing.assert_array_equal(found["w"], VALUES.reshape(3, 4))
    np.testing.assert_array_equal(found["b"], [1.5])
    for wrong in (
        {**good, "shape": [3, 5]},
        {**good, "data_offsets": [8, 56]},
        {**good, "data_offsets": [-48, 0]},
        {**good, "dtype": "F8"},
        {"dtype": "F32"},
    ):
        with pytest.raises(ValueError, match="damaged or no safetensors file"):
            read_arrays(safe(path, {"w": wrong}, values))
    entry = json.dumps(good)
    with pytest.raises(ValueError, match="stands twice"):
        read_arrays(safe(path, f'{{"w": {entry}, "w": {entry}}}'.encode(), values))
    path.write_bytes(struct.pack("<Q", 2**60) + b"{}")
    with pytest.raises(ValueError, match="a header of"):
        read_arrays(path)


def mxnet(path, generation, *, storage=0, tail=b""):
    """One array ``arg:w`` and one ``aux:m``, as three generations of MXNet write them."""

    def array(values):
        if generation == 0:
            head = struct.pack(f"<I{values.ndim}I", values.ndim, *values.shape)
        else:
            head = struct.pack("<I", 0xF993FAC7 + generation)
            head += struct.pack("<i", storage) if generation > 1 else b""
            head += struct.pack(f"<I{values.ndim}q", values.ndim, *values.shape)
        return head + struct.pack("<iii", 1, 0, 0) + values.tobytes()

    names = b"".join(struct.pack("<Q", len(n)) + n for n in (b"arg:w", b"aux:m"))
    arrays = array(VALUES.reshape(3, 4)) + array(VALUES[:2])
    path.write_bytes(
        struct.pack("<QQQ", 0x112, 0, 2) + arrays + struct.pack("<Q", 2) + names + tail
    )
    return path


@pytest.mark.parametrize("generation", [0, 1, 2, 3])
def test_mxnet_files_of_every_generation_are_read(tmp_path, generation):
    path = mxnet(tmp_path / "a.params", generation)
    found = read_arrays(path)
    np.testing.assert_array_equal(found["w"], VALUES.reshape(3, 4))
    np.testing.assert_array_equal(found["m"], VALUES[:2])
    whole = path.read_bytes()
    for end in (0, 20, 60, len(whole) - 1):
        path.write_bytes(whole[:end])
        with pytest.raises(ValueError, match="damaged or no MXNet file"):
            read_arrays(path)


def test_mxnet_oddities_are_refused(tmp_path):
    with pytest.raises(ValueError, match="1 bytes follow the names"):
        read_arrays(mxnet(tmp_path / "a.params", 2, tail=b"x"))
    with pytest.raises(ValueError, match="storage type 1, wanted 0"):
        read_arrays(mxnet(tmp_path / "a.params", 2, storage=1))


def test_unknown_layouts_and_missing_files_are_named(tmp_path):
    (tmp_path / "a.h5").write_bytes(b"")
    with pytest.raises(ValueError, match="h5"):
        read_arrays(tmp_path / "a.h5")
    with pytest.raises(ValueError, match="no such weight file"):
        read_arrays(tmp_path / "a.npz")


def network(seed):
    return filled(lambda: resnet.ResNet(resnet.Basic, (1, 1, 1, 1), rngs=nnx.Rngs(0)), seed)


def torch_arrays(module):
    """The arrays of a network as PyTorch would name and lay them out."""
    found = {}
    for name, path in module.parameter_names().items():
        if path is None:
            continue
        value = np.asarray(import_names.values_of(module)[path][...])
        value = value[None, None] if value.ndim == 2 else value
        found[name] = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value
    return found


def test_a_network_survives_its_own_and_foreign_files(tmp_path):
    first = network(0)
    save(first, tmp_path / "own.npz")
    arrays = {f"module.{name}": value for name, value in torch_arrays(first).items()}
    np.savez(tmp_path / "foreign.npz", **arrays)
    for name in ("own.npz", "foreign.npz"):
        second = network(1)
        load(second, tmp_path / name)
        for a, b in zip(*(jax.tree.leaves(nnx.state(m)) for m in (first, second)), strict=True):
            np.testing.assert_array_equal(a, b)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["foreign.npz", "own.npz"]


def test_every_misfit_is_listed_at_once_and_changes_nothing(tmp_path):
    module = network(0)
    arrays = torch_arrays(module)
    del arrays["bn1.running_var"]
    arrays["layer9.weight"] = np.zeros(3, np.float32)
    arrays["conv1.weight"] = arrays["conv1.weight"][:, :, :3]
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError) as problem:
        load(module, tmp_path / "a.npz")
    for line in (
        "bn1.running_var: missing",
        "layer9.weight: in the file, used by nothing",
        "conv1.weight: shape (64, 3, 3, 7) in the file, the network has (7, 7, 3, 64)",
    ):
        assert line in str(problem.value)
    for a, b in zip(*(jax.tree.leaves(nnx.state(m)) for m in (module, network(0))), strict=True):
        np.testing.assert_array_equal(a, b)


def small_transformer(grid=(3, 3), seed=0):
    return filled(lambda: vit.ViT(24, 2, 3, rngs=nnx.Rngs(0), grid=grid), seed)


def same(first, second):
    for a, b in zip(*(jax.tree.leaves(nnx.state(m)) for m in (first, second)), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("make", [network, small_transformer, lambda seed: tiny(seed)])
def test_our_own_files_keep_every_bit(tmp_path, make):
    first, second = make(seed=0), make(seed=1)
    save(first, tmp_path / "new" / "own.npz")
    load(second, tmp_path / "new" / "own.npz")
    same(first, second)
    with pytest.raises(ValueError, match=r"name it own\.npz"):
        save(first, tmp_path / "own.pth")


def tiny(seed=0):
    return filled(lambda: BACKBONES["tiny"](rngs=nnx.Rngs(0)), seed)


def test_positions_of_our_own_files_are_resampled(tmp_path):
    first, wide = small_transformer(), small_transformer(grid=(5, 4), seed=1)
    save(first, tmp_path / "own.npz")
    load(wide, tmp_path / "own.npz")
    wanted = vit_positions.antialiased(first.encoder.position[...], (5, 4))[0]
    np.testing.assert_array_equal(wide.encoder.position[...], wanted)
    np.testing.assert_array_equal(wide.embed.kernel[...], first.embed.kernel[...])


def as_safetensors(path, arrays):
    header, values, at = {}, [], 0
    for name, value in arrays.items():
        value = np.ascontiguousarray(value, np.float32)
        span = [at, at + value.nbytes]
        header[name] = {"dtype": "F32", "shape": list(value.shape), "data_offsets": span}
        values.append(value.tobytes())
        at += value.nbytes
    return safe(path, header, b"".join(values))


def test_a_classifier_starts_from_any_weight_file(tmp_path):
    path = as_safetensors(tmp_path / "r18.safetensors", torch_arrays(resnet18()))
    key, settings = jax.random.key(0), {"output_stride": 16, "pretrained": path}
    model = build.classifier("resnet18", 3, key=key, **settings)
    same(model.backbone, resnet18())
    assert model.kernel.shape == (512, 3)


def resnet18():
    return filled(lambda: BACKBONES["resnet18"](rngs=nnx.Rngs(0)))


def test_files_are_converted_to_ours_and_the_backbone_is_found(tmp_path, capsys, monkeypatch):
    few = {name: BACKBONES[name] for name in ("mobilenet_v1", "resnet18", "resnet50", "tiny")}
    monkeypatch.setattr(recognise, "BACKBONES", few)
    source = as_safetensors(tmp_path / "a.safetensors", torch_arrays(resnet18()))
    target = tmp_path / "own.npz"
    main(["weights", "convert", str(source), "--to", str(target)])
    assert "resnet18" in capsys.readouterr().out
    module = nnx.eval_shape(lambda: BACKBONES["resnet18"](rngs=nnx.Rngs(0)))
    load(module, target)
    same(module, resnet18())
    with pytest.raises(SystemExit):
        main(["weights", "convert", str(source), "--backbone", "resnet50", "--to", str(target)])
    assert "missing, wanted for layer1/0/conv3/kernel" in capsys.readouterr().err
    arrays = torch_arrays(resnet18()) | {"extra": np.zeros(2)}
    with pytest.raises(ValueError, match="nearest is resnet18, with 1 misfits:\n  extra: in the"):
        recognise.known(as_safetensors(source, arrays))


def test_without_the_hub_the_file_to_place_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match=r"model\.safetensors of timm/resnest101e\.in1k"):
        import_hub.fetch("hub:timm/resnest101e.in1k")
    assert import_hub.fetched("timm/resnest101e.in1k") is None
    with pytest.raises(ValueError, match="wanted hub:owner/name"):
        import_hub.fetch("hub:timm")

    def download(repository, file):
        if repository == "a/b":
            return f"/cache/{repository}/{file}"
        raise OSError("no network")

    cached = {"a/b": "/cache/a/b/model.safetensors", "e/f": object()}  # known not to exist
    fake = types.SimpleNamespace(
        hf_hub_download=download, try_to_load_from_cache=lambda name, file: cached.get(name)
    )
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
    assert import_hub.fetch("hub:a/b").as_posix() == "/cache/a/b/model.safetensors"
    assert import_hub.fetch("hub:a/b/c/d.bin").as_posix() == "/cache/a/b/c/d.bin"
    assert str(import_hub.fetched("a/b")) == cached["a/b"]
    assert import_hub.fetched("c/d") is None and import_hub.fetched("e/f") is None
    with pytest.raises(ValueError, match=r"no network.*place it here as d\.safetensors"):
        import_hub.fetch("hub:c/d")


def test_pytorch_itself_agrees(tmp_path):
    torch = pytest.importorskip("torch")
    wanted = {"a": torch.arange(6.0).reshape(2, 3).t(), "b": torch.ones(3).bfloat16()}
    for new in (True, False):
        buffer = io.BytesIO()
        torch.save(wanted, buffer, _use_new_zipfile_serialization=new)
        (tmp_path / "a.pth").write_bytes(buffer.getvalue())
        found = read_arrays(tmp_path / "a.pth")
        for name, value in wanted.items():
            np.testing.assert_array_equal(found[name], value.float().numpy())
