"""Pickled dictionaries are read without being run: known bytes, damage, and hostile programs."""

import argparse
import io
import pickle
import struct
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
import toy_priors
from golden_draw import prior_scores, write_priors

from wsss_jax.errors import BadFileError, MissingFileError
from wsss_jax.formats import pickles, torch_tensors
from wsss_jax.formats.pickled_arrays import read_dictionary

MAPS = np.linspace(0, 1, 24, dtype=np.float32).reshape(2, 3, 4)


def npy(path, pickled):
    """A pickle behind the header of an array of one object."""
    buffer = io.BytesIO()
    np.save(buffer, np.array({}, object))
    path.write_bytes(buffer.getvalue()[:128] + pickled)
    return path


def text(word):
    return b"X" + struct.pack("<I", len(word)) + word.encode()


def test_arrays_tensors_and_numbers_come_as_they_were(tmp_path):
    content = {
        "keys": toy_priors.tensor(np.array([3, 5])),
        "cam": toy_priors.tensor(MAPS),
        "view": toy_priors.tensor(MAPS[0].T),
        "half": MAPS.astype(np.float16),
        "big": MAPS.astype(">f8"),
        "fortran": np.asfortranarray(MAPS),
        "bytes": (MAPS * 255).astype(np.uint8),
        "flags": MAPS > 0.5,
        "list": [1, 2],
        "number": 4,
        "scalar": np.float32(0.5),
        "empty": MAPS[:0],
    }
    toy_priors.save(tmp_path / "a.npy", content)
    found = read_dictionary(tmp_path / "a.npy")
    assert found["keys"].tolist() == [3, 5] and found["keys"].dtype == np.int64
    np.testing.assert_array_equal(found["cam"], MAPS)
    np.testing.assert_array_equal(found["view"], MAPS[0].T)
    for name in ("half", "big", "fortran", "bytes", "flags", "empty"):
        np.testing.assert_array_equal(found[name], content[name])
        assert found[name].dtype.kind == content[name].dtype.kind
    assert (found["number"], found["scalar"], found["list"].tolist()) == (4, 0.5, [1, 2])


@pytest.mark.parametrize("protocol", range(6))
def test_every_protocol_is_read(tmp_path, protocol):
    content = {0: MAPS[0], np.int64(12): MAPS[1], 3: np.asfortranarray(MAPS), 4: MAPS[:0]}
    (tmp_path / "a.npy").write_bytes(pickle.dumps(content, protocol))
    found = read_dictionary(tmp_path / "a.npy")
    assert list(found) == [0, 12, 3, 4]
    for key, values in content.items():
        np.testing.assert_array_equal(found[int(key)], values)


def test_numpy_1_names_of_protocol_5_and_other_orders_of_axes(tmp_path):
    written = pickle.dumps({1: MAPS, 2: MAPS.transpose(2, 0, 1)}, 5)
    assert b"numpy._core.numeric" in written
    old = written.replace(b"\x8c\x13numpy._core.numeric", b"\x8c\x12numpy.core.numeric")
    for number, content in enumerate((written, old)):
        path = tmp_path / f"{number}.npy"
        path.write_bytes(unframed(content))
        found = read_dictionary(path)
        np.testing.assert_array_equal(found[1], MAPS)
        np.testing.assert_array_equal(found[2], MAPS.transpose(2, 0, 1))


def unframed(content):
    """The pickle without the length of its frame, which changed bytes would belie."""
    return content[:2] + content[11:]


def test_bytes_of_python_2_are_numbers(tmp_path):
    values = np.arange(200, 204, dtype=np.uint8)
    written = pickle.dumps({1: values}, 2)
    old = written.replace(b"_codecs\nencode\n", b"_codecs\nencode\n")  # protocol 2 has it in words
    assert b"_codecs" in old
    (tmp_path / "a.npy").write_bytes(old)
    np.testing.assert_array_equal(read_dictionary(tmp_path / "a.npy")[1], values)


def test_tensors_that_pytorch_wrote_are_read(tmp_path):
    found = read_dictionary(write_priors(tmp_path) / "irn/one.npy")
    scores = prior_scores("one")
    assert found["keys"].tolist() == [12, 14]
    np.testing.assert_array_equal(found["cam"], scores[:, ::4, ::4])
    np.testing.assert_array_equal(found["high_res"], scores)


class Exploit:
    def __reduce__(self):
        return eval, ("open('pwned', 'w')",)


class Chained:
    def __reduce__(self):
        return getattr, (Exploit(), "real")


@pytest.mark.parametrize(
    "content, message",
    [
        (Exploit(), "names builtins.eval"),
        ({1: Exploit()}, "names builtins.eval"),
        ({"keys": Chained()}, "names builtins.getattr"),
        ({(1, 2): MAPS}, "a key of a dictionary that is neither text nor number"),
        ({1.5: MAPS}, "key 1.5 is no class number"),
        ([MAPS, MAPS], "holds a list, wanted a dictionary"),
        (7, "holds a int, wanted a dictionary"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_dictionary_of_arrays_is_refused_by_name(
    tmp_path, content, message, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    npy(tmp_path / "a.npy", pickle.dumps(np.array(content, object), 4))
    if isinstance(content, list):
        np.save(tmp_path / "a.npy", np.array([None]))
        (tmp_path / "a.npy").write_bytes(pickle.dumps(content))
    with pytest.raises(BadFileError, match=message) as problem:
        read_dictionary(tmp_path / "a.npy")
    assert "\n" not in str(problem.value) and not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    "value, kind",
    [
        (io.BytesIO(), "_io.BytesIO"),
        (Path("x"), "made by pathlib"),
        (argparse.Namespace(a=1), "argparse.Namespace"),
        ({1, 2}, "set"),
        (frozenset({1}), "set"),
        (np.array([object()]), "array of objects"),
        (np.array([None, None]), "2 objects"),
        (np.zeros(2, "U3"), "type 'U3', wanted plain numbers"),
        (np.zeros(2, "f4,i4"), "type 'V8', wanted plain numbers"),
        (np.zeros(2, "datetime64[s]"), "wanted plain numbers"),
        ({2: MAPS, (1, 2): None}, "a dict"),
        (None, "a NoneType"),
        (defaultdict(list, {1: MAPS}), "a dict"),
        ([None, "x"], "a list"),
        (Counter("aab"), "Counter"),
        (complex(1, 2), "complex"),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_what_is_no_array_stands_in_its_place(tmp_path, value, kind, protocol):
    (tmp_path / "a.npy").write_bytes(pickle.dumps({"keys": MAPS, "unused": value}, protocol))
    found = read_dictionary(tmp_path / "a.npy")
    np.testing.assert_array_equal(found["keys"], MAPS)
    assert isinstance(found["unused"], pickles.Opaque) and kind in found["unused"].kind


def array(shape, content, kind=b"f4"):
    """An array as NumPy pickles it, with any shape and any content."""
    sides = b"".join(b"\x8a\x08" + struct.pack("<q", n) for n in shape)
    return (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85C\x01btR(K\x01("
        + sides + b"tcnumpy\ndtype\n(U\x02" + kind + b"\x89\x88tR(K\x03U\x01<NNNJ"
        + struct.pack("<iB", -1, ord("J")) + struct.pack("<i", -1) + b"K\x00tb\x89"
        + b"B" + struct.pack("<I", len(content)) + content + b"tb"
    )  # fmt: skip


def stream(count, content, kind=b"FloatStorage"):
    """A tensor whose storage announces ``count`` values."""
    inner = b"".join(
        pickle.dumps(v, 2) for v in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": 1})
    )
    inner += b"\x80\x02(" + text("storage") + b"ctorch\n" + kind + b"\n" + text("0") + text("cpu")
    inner += b"\x8a\x08" + struct.pack("<q", count) + b"NtQ." + pickle.dumps(["0"], 2)
    inner += struct.pack("<q", count) + content
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n(ctorch.storage\n_load_from_bytes\nB"
        + struct.pack("<I", len(inner)) + inner + b"\x85RK\x00K\x02\x85K\x01\x85\x89}tR"
    )  # fmt: skip


def test_the_bytes_above_are_a_file_when_they_are_whole(tmp_path):
    for part in (array((2,), MAPS[0, 0, :2].tobytes()), stream(2, MAPS[0, 0, :2].tobytes())):
        (tmp_path / "a.npy").write_bytes(b"\x80\x02}K\x01" + part + b"s.")
        np.testing.assert_array_equal(read_dictionary(tmp_path / "a.npy")[1], MAPS[0, 0, :2])


@pytest.mark.parametrize(
    "part, message",
    [
        (array((2**40,), b"\0" * 8), r"shape \(1099511627776,\) in 8 bytes, not 4,398,046,511,104"),
        (array((-2,), b"\0" * 8), "sides that are no numbers"),
        (array((3,), b"\0" * 8), "in 8 bytes, not 12"),
        (array((0, 2**62, 2**62), b""), "array|dimension|size"),
        (array((1,) * 70, b"\0" * 4), "dimension"),
        (stream(2**40, b"\0" * 8), "a storage of 1,099,511,627,776 values"),
        (stream(3, b"\0" * 8), "cut off at 8 of 12 bytes"),
        (stream(1, b"\0" * 4), "reaches value 1 of a storage of 1"),
        (stream(-1, b""), "a storage of -1 values"),
        (stream(2, b"\0" * 8, b"UntypedStorage"), "a storage of type torch.UntypedStorage"),
        (b"\x8e" + struct.pack("<Q", 2**42) + b"ab", "expected 4398046511104 bytes"),
        (b"B" + struct.pack("<I", 2**32 - 1) + b"ab", "expected 4294967295 bytes"),
        (b"\x8b" + struct.pack("<i", 2**31 - 1) + b"1", "not enough data in stream"),
        (b"\x85" * 3, "damaged"),
        (b"h\x09", "damaged"),
        (b"(ios\nsystem\n", "uses INST"),
        (b"\x82\x01", "uses EXT1"),
        (b"P12\n", "uses PERSID"),
        (text("cpu") + b"Q", "uses BINPERSID"),
        (b"ctorch\nSize\nK\x05\x85R", "damaged"),
    ],
)
def test_sizes_and_programs_that_lie_are_refused(tmp_path, part, message):
    (tmp_path / "a.npy").write_bytes(b"\x80\x02}K\x01" + part + b"s.")
    with pytest.raises(BadFileError, match=message):
        read_dictionary(tmp_path / "a.npy")


def test_nesting_without_end_neither_crashes_nor_hangs(tmp_path):
    deep = b")" + b"\x85" * 3_000
    for body in (b"}" + deep + b"K\x01s.", b"}K\x01" + deep + b"s.", deep * 2 + b"."):
        (tmp_path / "a.npy").write_bytes(b"\x80\x02" + body)
        if body.startswith(b"}K"):  # a field that is no array
            assert isinstance(read_dictionary(tmp_path / "a.npy")[1], pickles.Opaque)
            continue
        with pytest.raises(BadFileError):
            read_dictionary(tmp_path / "a.npy")


def test_a_header_of_four_tebibytes_asks_for_nothing(tmp_path):
    head = b"{'descr': '<f8', 'fortran_order': False, 'shape': (549755813888,), }"
    head += b" " * (117 - len(head)) + b"\n"
    for start in (head, head.replace(b"<f8", b"|O ")[:118], head[:40], b"((((" * 20):
        content = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(start)) + start
        (tmp_path / "a.npy").write_bytes(content)
        with pytest.raises(BadFileError, match=r"a\.npy: cannot be read as arrays"):
            read_dictionary(tmp_path / "a.npy")
    np.save(tmp_path / "a.npy", MAPS)
    with pytest.raises(BadFileError, match=r"an array of shape \(2, 3, 4\).* does not say its"):
        read_dictionary(tmp_path / "a.npy")


def test_a_file_cut_at_any_kilobyte_is_one_error(tmp_path):
    path = tmp_path / "a.npy"
    large = np.zeros((2, 40, 50), np.float32)
    toy_priors.save(path, {"keys": toy_priors.tensor(np.arange(2)), "cam": toy_priors.tensor(large),
                           "high_res": large})  # fmt: skip
    whole = path.read_bytes()
    for end in (*range(0, len(whole), 1024), *range(0, 1024, 37), len(whole) - 1):
        path.write_bytes(whole[:end])
        with pytest.raises(BadFileError, match=r"a\.npy: cannot be read as arrays"):
            read_dictionary(path)
    with pytest.raises(MissingFileError):
        read_dictionary(tmp_path / "gone.npy")


def test_bytes_turned_at_random_never_do_anything_else(tmp_path):
    path = tmp_path / "a.npy"
    toy_priors.save(path, {"keys": toy_priors.tensor(np.arange(2)), "high_res": MAPS})
    whole = np.frombuffer(path.read_bytes(), np.uint8)
    generator = np.random.default_rng(0)
    for _ in range(60):
        turned = whole.copy()
        turned[generator.integers(128, len(whole), 3)] = generator.integers(0, 256, 3)
        path.write_bytes(turned.tobytes())
        try:
            found = read_dictionary(path)
        except BadFileError:
            continue
        wanted = (np.ndarray, int, float, str, list, pickles.Opaque)
        assert all(isinstance(value, wanted) for value in found.values())


def test_a_storage_cannot_be_described_larger_than_it_is():
    small = torch_tensors.Storage("0", "<f4", 10**6)
    view = torch_tensors.Tensor(small, 0, (1000,), (1,))
    with pytest.raises(ValueError, match="reaches value 999 of a storage of 3"):
        torch_tensors.cut("w", view, np.zeros(3, np.float32))


def test_a_length_that_lies_allocates_nothing(tmp_path):
    (tmp_path / "a").write_bytes(b"\x80\x04\x8e" + struct.pack("<Q", 2**42) + b"ab.")
    with (tmp_path / "a").open("rb") as file, pytest.raises(ValueError, match="4,398,046,511,104"):
        pickles.run(file, {})


def test_operations_are_counted(tmp_path):
    (tmp_path / "a.npy").write_bytes(b"\x80\x04" + b"]0" * 60_000 + b"}.")
    with pytest.raises(BadFileError, match="more than 50,000 operations"):
        read_dictionary(tmp_path / "a.npy")


def test_only_what_the_table_calls_is_called():
    called = pickles.run(io.BytesIO(b"\x80\x02cmath\nprod\n](K\x03e\x85R."), {})
    assert isinstance(called, pickles.Opaque) and called.kind == "made by math.prod"
    pair = b"\x80\x02cmath\nprod\n](K\x03K\x04e\x85R."
    assert pickles.run(io.BytesIO(pair), {"math prod": sum}) == 7
