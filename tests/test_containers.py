"""The same numbers come out of every container that other tools write, and nothing too large."""

import io
import os
import pickle
import socket
import struct
import zipfile
from collections import OrderedDict, defaultdict

import numpy as np
import pytest
import toy_priors

from wsss_jax.errors import BadFileError
from wsss_jax.formats import npz
from wsss_jax.formats.bounded import read_bytes
from wsss_jax.formats.pickled_arrays import read_content, read_dictionary, read_vectors
from wsss_jax.formats.pickles import Opaque
from wsss_jax.weights.import_files import read_arrays

MAPS = np.linspace(0, 1, 24, dtype=np.float32).reshape(2, 3, 4)
KEYS = np.array([4, 7])


def text(word):
    return b"X" + struct.pack("<I", len(word)) + word.encode()


def tensor(key="0", shape=(2, 3, 4), strides=(12, 4, 1), count=24, call="_rebuild_tensor_v2"):
    """The operations of a tensor whose storage lies beside the pickle."""
    sides, steps = (
        b"(" + b"".join(b"J" + struct.pack("<i", n) for n in numbers) + b"t"
        for numbers in (shape, strides)
    )
    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text(key) + text("cpu")
    storage += b"J" + struct.pack("<i", count) + b"tQ"
    rest = b"\x89ccollections\nOrderedDict\n)R" if call.endswith("v2") else b""
    return (
        b"ctorch._utils\n"
        + call.encode()
        + b"\n("
        + storage
        + b"K\x00"
        + sides
        + steps
        + rest
        + b"tR"
    )


def archive(fields, values=MAPS):
    """torch.save since 1.6."""
    nest = b"\x80\x02}(" + b"".join(text(n) + part for n, part in fields.items()) + b"u."
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("a/data.pkl", nest)
        file.writestr("a/data/0", values.tobytes())
    return buffer.getvalue()


def stream(fields):
    """torch.save before 1.6."""
    parts = [pickle.dumps(v, 2) for v in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    nest = b"\x80\x02}(" + b"".join(text(n) + part for n, part in fields.items()) + b"u."
    parts += [nest.replace(b"tQ", b"NtQ"), pickle.dumps(["0"], 2), struct.pack("<q", 24)]
    return b"".join(parts) + MAPS.tobytes()


def saved(save, *args, **content):
    buffer = io.BytesIO()
    save(buffer, *args, **content)
    return buffer.getvalue()


CONTENT = {"keys": KEYS, "high_res": MAPS}
NUMBERS = b"](K\x04K\x07e"
OBJECT = np.array(CONTENT, object)
CONTAINERS = {
    "np.save": saved(np.save, OBJECT),
    "np.savez": saved(np.savez, **CONTENT),
    "np.savez_compressed": saved(np.savez_compressed, **CONTENT),
    "np.savez of a dictionary": saved(np.savez, OBJECT),
    "torch archive": archive({"keys": NUMBERS, "high_res": tensor()}),
    "torch stream": stream({"keys": NUMBERS, "high_res": tensor()}),
    "torch 0.3": stream({"keys": NUMBERS, "high_res": tensor(call="_rebuild_tensor")}),
    "defaultdict": pickle.dumps(defaultdict(list, CONTENT)),
    "OrderedDict": pickle.dumps(OrderedDict(CONTENT), 2),
    "list of maps": pickle.dumps({"keys": KEYS, "high_res": list(MAPS)}),
    "one in a list": pickle.dumps([CONTENT]),
}


@pytest.mark.parametrize("name", CONTAINERS)
@pytest.mark.parametrize("suffix", [".npy", ".pt"])
def test_the_content_tells_the_container(tmp_path, name, suffix):
    (tmp_path / f"a{suffix}").write_bytes(CONTAINERS[name])
    found = read_dictionary(tmp_path / f"a{suffix}")
    assert list(found) == ["keys", "high_res"] and found["keys"].tolist() == [4, 7]
    np.testing.assert_array_equal(found["high_res"], MAPS)


def test_a_tensor_with_attributes_is_the_tensor(tmp_path):
    """torch calls _rebuild_from_type_v2(function, type, its arguments, attributes)."""
    plain = tensor()
    function, _, arguments = plain.partition(b"_rebuild_tensor_v2\n")
    typed = b"ctorch._tensor\n_rebuild_from_type_v2\n(" + function + b"_rebuild_tensor_v2\n"
    typed += b"ctorch\nTensor\n" + arguments[:-1] + b"}" + text("note") + text("x") + b"stR"
    (tmp_path / "a.pt").write_bytes(archive({"cam": typed}))
    np.testing.assert_array_equal(read_dictionary(tmp_path / "a.pt")["cam"], MAPS)
    hostile = typed.replace(b"ctorch._utils\n_rebuild_tensor_v2", b"cos\nsystem")
    (tmp_path / "a.pt").write_bytes(archive({"cam": hostile}))
    with pytest.raises(BadFileError, match=r"a\.pt.*names os\.system"):
        read_dictionary(tmp_path / "a.pt")


def test_numbers_as_names_of_an_npz_are_numbers(tmp_path):
    np.savez(tmp_path / "a.npz", **{"4": MAPS[0], "7": MAPS[1]})
    assert list(read_dictionary(tmp_path / "a.npz")) == [4, 7]
    np.savez(tmp_path / "a.npz", MAPS)
    np.testing.assert_array_equal(read_content(tmp_path / "a.npz"), MAPS)


@pytest.mark.parametrize(
    "key", ["2007_000032", 2007000032, np.int64(2007000032)], ids=["text", "number", "numpy"]
)
def test_labels_of_images_are_read_from_a_pickle(tmp_path, key):
    """IRN numbers the images of VOC 2007000032."""
    np.save(tmp_path / "cls_labels.npy", np.array({key: np.eye(20)[3]}, object))
    found = read_vectors(tmp_path / "cls_labels.npy")
    assert list(found) == ["2007_000032"] and np.flatnonzero(found["2007_000032"]).tolist() == [3]
    np.save(tmp_path / "cls_labels.npy", np.array({key: MAPS}, object))
    with pytest.raises(BadFileError, match=r"cls_labels\.npy.*wanted a vector"):
        read_vectors(tmp_path / "cls_labels.npy")


def test_views_of_one_value_are_counted_together(tmp_path):
    """40 tensors of 64 MB from one value: each is allowed, all are not."""
    view = tensor(shape=(2**14, 2**10), strides=(0, 0), count=24)
    (tmp_path / "a.pth").write_bytes(archive({f"w{n}": view for n in range(40)}))
    with pytest.raises(ValueError, match=r"a\.pth.*tensors of 2,684,354,560 bytes in all"):
        read_arrays(tmp_path / "a.pth")
    with pytest.raises(BadFileError, match=r"a\.pth.*more than 268,435,456 bytes together"):
        read_dictionary(tmp_path / "a.pth")


def header(shape, kind):
    content = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    content += b" " * (117 - len(content)) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(content)) + content


@pytest.mark.parametrize("kind, shape", [("<U100000000", (2,)), ("<f8", (2**27,))])
def test_members_of_an_archive_are_counted_in_bytes(tmp_path, kind, shape):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as file:
        for n in range(3):
            file.writestr(f"{n}.npy", header(shape, kind))
    with pytest.raises(BadFileError, match=r"a\.npz.*bytes"):
        npz.headers(tmp_path / "a.npz", 2**28)
    with pytest.raises(BadFileError, match=r"a\.npz.*bytes"):
        npz.read(tmp_path / "a.npz", {"0": "fU", "1": "fU"}, 2**28)
    with pytest.raises(BadFileError, match=r"a\.npz.*bytes"):
        read_dictionary(tmp_path / "a.npz")


def test_a_damaged_stream_of_a_record_is_one_error(tmp_path):
    """zlib.error and NotImplementedError of the standard library came through here."""
    np.savez_compressed(tmp_path / "a.npz", x=np.arange(2000.0))
    whole = bytearray((tmp_path / "a.npz").read_bytes())
    method = whole.index(b"PK\x01\x02") + 10
    for place, value in ((70, 0xFF), (200, 0xFF), (method, 99)):
        changed = bytearray(whole)
        changed[place : place + 2] = bytes([value] * 2)
        (tmp_path / "a.npz").write_bytes(changed)
        with pytest.raises(BadFileError, match=r"a\.npz: damaged"):
            npz.read(tmp_path / "a.npz", {"x": "f"})


def test_pipes_and_sockets_are_refused_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.npy")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s.npy"))
        for name in ("a.npy", "s.npy", ""):
            with pytest.raises(BadFileError, match=name or "a folder"):
                read_bytes(tmp_path / name)
    with pytest.raises(BadFileError, match=r"a\.npy"):
        npz.headers(tmp_path / "a.npy")
    with pytest.raises(BadFileError, match="device"):
        read_bytes(type(tmp_path)("/dev/zero"))


def test_other_things_of_a_file_are_left_unread(tmp_path):
    toy_priors.save(tmp_path / "a.npy", {**CONTENT, "args": {"x": None}, "none": None, "t": "a"})
    found = read_dictionary(tmp_path / "a.npy")
    assert isinstance(found["args"], Opaque) and isinstance(found["none"], Opaque)
    assert found["t"] == "a"
