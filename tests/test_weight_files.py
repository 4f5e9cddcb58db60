"""What kind of file weights lie in, the network in a checkpoint, and bounds of what is read."""

import json
import struct

import numpy as np
import pytest
from test_import_files import archive, nest, safe, tensor

from wsss_jax.errors import BadFileError, UserError
from wsss_jax.weights.import_files import read, read_arrays


def test_the_network_in_a_checkpoint_is_found(tmp_path):
    two = nest(w=tensor(), b=tensor())
    for pickled in (
        nest(best_acc1=tensor(shape=(), strides=()), state_dict=two),  # PyTorch's own example
        nest(student=two, teacher=two, optimizer=nest(state=nest(w=tensor()))),
        nest(model=nest(teacher=two), args=nest(lr=tensor())),
        nest(optimizer_state_dict=two, whatever=two),
    ):
        found = read(archive(tmp_path / "a.pth.tar", pickled))
        assert sorted(found.arrays) == ["b", "w"] and found.kind == "torch"


def test_values_that_are_marked_to_be_negated_are_refused(tmp_path):
    # PyTorch keeps a negative view as the values themselves and a mark behind the hooks.
    marked = tensor().removesuffix(b"tR") + b"(dVneg\n\x88stR"
    with pytest.raises(BadFileError, match=r"values are marked {'neg': True}.; where you trust"):
        read_arrays(archive(tmp_path / "a.pth", nest(w=marked)))


def test_a_pickle_that_torch_did_not_save_is_called_so(tmp_path):
    (tmp_path / "a.pth").write_bytes(b"\x80\x02}X\x01\x00\x00\x00wK\x01s.")
    with pytest.raises(BadFileError, match=r"a plain pickle.; where you trust it"):
        read_arrays(tmp_path / "a.pth")


def test_tensors_of_safetensors_fill_their_file_side_by_side(tmp_path):
    for offsets in ((0, 8, 4, 12), (4, 8, 8, 12), (0, 4, 4, 8)):
        parts = {"w": offsets[:2], "v": offsets[2:]}
        table = {
            name: {"dtype": "U8", "shape": [stop - start], "data_offsets": [start, stop]}
            for name, (start, stop) in parts.items()
        }
        with pytest.raises(BadFileError, match=r"overlaps or gaps|8 bytes in 12"):
            read_arrays(safe(tmp_path / "a.safetensors", table, b"0" * 12))
    table = {"w": {"dtype": "F8_E4M3", "shape": [12], "data_offsets": [0, 12]}}
    with pytest.raises(BadFileError, match="w has the type F8_E4M3; save it as F32"):
        read_arrays(safe(tmp_path / "a.safetensors", table, b"0" * 12))


def test_one_value_is_not_read_as_gigabytes(tmp_path):
    names = {f"w{n}": tensor(shape=(250_000_000,), strides=(0,), count=1) for n in range(40)}
    path = archive(tmp_path / "a.pth", nest(**names), {"0": np.zeros(1, np.float32)})
    assert path.stat().st_size < 20_000
    with pytest.raises(BadFileError, match=r"40,000,000,000 bytes in all view storages of 4\)"):
        read_arrays(path)
    over = {f"w{n}": {"dtype": "BF16", "shape": [6], "data_offsets": [0, 12]} for n in range(9)}
    with pytest.raises(BadFileError, match="overlaps or gaps"):
        read_arrays(safe(tmp_path / "a.safetensors", over, b"0" * 12))
    np.savez_compressed(tmp_path / "a.npz", w=np.zeros(10_000_000, np.float32))
    with pytest.raises(BadFileError, match="no weights shrink like that"):
        read_arrays(tmp_path / "a.npz")


@pytest.mark.parametrize(
    "content, wanted",
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"<!DOCTYPE html>", "a web page"),
        (b"\x1f\x8b" + b"0" * 20, "unpack it"),
        (b"0000TFL3" + b"0" * 20, "a TFLite model"),
        (b"0" * 257 + b"ustar" + b"0" * 20, "a tar archive"),
        (b"hello, this is no file of weights", "no weight file of a known kind"),
    ],
)
def test_strangers_are_called_by_their_names(tmp_path, content, wanted):
    (tmp_path / "a.dat").write_bytes(content)
    with pytest.raises(UserError, match=wanted):
        read(tmp_path / "a.dat")


def test_the_first_bytes_tell_the_layout_whatever_the_suffix(tmp_path):
    header = json.dumps({"w": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}).encode()
    header += b" " * (128 - len(header))  # its length begins like a pickle
    path = tmp_path / "a.bin"
    path.write_bytes(struct.pack("<Q", 128) + header + b"\x07")
    assert read(path).arrays["w"] == 7
    np.savez(tmp_path / "b.npz", w=np.arange(3))
    (tmp_path / "b.npz").rename(tmp_path / "b.weights")
    np.testing.assert_array_equal(read(tmp_path / "b.weights").arrays["w"], [0, 1, 2])
