"""Arrays and node names of ONNX files, read without ONNX: protobuf's wire format, by hand.

Source: onnx/onnx.proto (the numbers of fields) and protobuf's "Encoding" page. Arrays are views of
the file's bytes, so that nothing is allocated which the file does not hold. Graphs are not run:
subgraphs, attributes and types of values are skipped.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from jaxtyping import Shaped

from wsss_jax.errors import UserError
from wsss_jax.formats.bounded import one_error, read_bytes
from wsss_jax.formats.torch_tensors import decoded, width

MAX_BYTES = 2 * 2**30
"""Protobuf's own limit of one message."""

MAX_FIELDS = 1_000_000
"""Fields of one file; graphs of large networks have some ten thousand."""

_TYPES = MappingProxyType({
    1: "<f4", 2: "u1", 3: "i1", 4: "<u2", 5: "<i2", 6: "<i4", 7: "<i8", 9: "?", 10: "<f2",
    11: "<f8", 12: "<u4", 13: "<u8", 16: "bf16",
})  # fmt: skip
_FLOATS, _RAW, _PLACE = 4, 9, 14
_MAX_AXES = 8

Value = int | memoryview


class Node(NamedTuple):
    """One operation of a graph: what it does, its name, and the names of what it takes."""

    operation: str
    name: str
    inputs: tuple[str, ...]


class Graph(NamedTuple):
    """Arrays by their names in the file (read only), and nodes in the file's order."""

    arrays: dict[str, Shaped[np.ndarray, "..."]]
    nodes: tuple[Node, ...]


def read(path: Path) -> Graph:
    """The arrays and nodes of an ONNX model; bfloat16 comes as float32.

    Raises MissingFileError, and BadFileError for damaged files, other graphs (TensorFlow's), values
    that lie in another file, and texts.
    """
    with one_error(path, "no ONNX model that can be read"):
        fields, content = _Fields(), memoryview(read_bytes(path, MAX_BYTES))
        graphs = [_bytes(value) for number, value in fields.of(content) if number == 7]
        if len(graphs) != 1:
            raise UserError(f"{len(graphs)} graphs, wanted 1; perhaps a graph of TensorFlow")
        arrays, nodes = {}, []
        for number, value in fields.of(graphs[0]):
            if number == 1:
                nodes.append(_node(fields, _bytes(value)))
            elif number == 5:
                name, array = _array(fields, _bytes(value))
                if name in arrays:
                    raise UserError(f"two arrays have the name {name!r}")
                arrays[name] = array
        return Graph(arrays, tuple(nodes))


class _Fields:
    """Splits messages into their fields, and counts these over the whole file."""

    def __init__(self) -> None:
        self.count = 0

    def of(self, message: memoryview) -> Iterator[tuple[int, Value]]:
        """(number, value) of each field: an integer, or its bytes."""
        at = 0
        while at < len(message):
            self.count += 1
            if self.count > MAX_FIELDS:
                raise UserError(f"more than {MAX_FIELDS:,} fields")
            key, at = _varint(message, at)
            if key & 7 == 0:
                value, at = _varint(message, at)
                yield key >> 3, value
                continue
            length = {1: 8, 5: 4}.get(key & 7, -1)
            if key & 7 == 2:
                length, at = _varint(message, at)
            if not 0 <= length <= len(message) - at:
                raise UserError(f"no field of a message at byte {at} of {len(message)}")
            yield key >> 3, message[at : at + length]
            at += length


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """A number of seven bits per byte, lowest first, and where the next field begins."""
    value = 0
    for place in range(10):
        byte = message[at + place]  # IndexError past the end, which one_error reports
        value |= (byte & 127) << (7 * place)
        if byte < 128:
            return value, at + place + 1
    raise UserError(f"a number of more than ten bytes at byte {at}")


def _node(fields: _Fields, message: memoryview) -> Node:
    texts: dict[int, list[str]] = {1: [], 3: [], 4: []}
    for number, value in fields.of(message):
        if number in texts:
            texts[number].append(_text(value))
    return Node("".join(texts[4][-1:]), "".join(texts[3][-1:]), tuple(texts[1]))


def _array(fields: _Fields, message: memoryview) -> tuple[str, np.ndarray]:
    shape: list[int] = []
    held: dict[int, Value] = {}
    for number, value in fields.of(message):
        if number == 1:
            if not isinstance(value, int) or len(shape) == _MAX_AXES:
                raise UserError(f"the shape of an array is no list of {_MAX_AXES} numbers at most")
            shape.append(value)
        else:
            held[number] = value
    name, code = _text(held.get(8, memoryview(b""))), held.get(2)
    dtype = _TYPES.get(code) if isinstance(code, int) else None
    if dtype is None:
        raise UserError(f"{name!r} has type {code!r}, wanted numbers")
    if held.get(_PLACE):
        raise UserError(f"the values of {name!r} lie in another file; join them into one")
    values = _bytes(held.get(_RAW, held.get(_FLOATS if code == 1 else _RAW, memoryview(b""))))
    if len(values) != math.prod(shape) * width(dtype):
        raise UserError(f"{name!r} of shape {tuple(shape)} has {len(values):,} bytes")
    return name, decoded(values, dtype).reshape(shape)


def _bytes(value: Value) -> memoryview:
    if isinstance(value, int):
        raise UserError(f"the number {value} where bytes were wanted")
    return value


def _text(value: Value) -> str:
    return str(_bytes(value), "utf-8")
