"""Weights of ONNX files that PyTorch exported, under the names that they had in PyTorch.

The exporter keeps the names of most values. Those that it computed with have lost theirs
(``onnx::MatMul_1966``), but nodes keep the path of the layer that they came from
(``/encoder/layer.0/mlp/fc1/MatMul``). So a linear layer's weight is found by its node.
"""

from pathlib import Path

import numpy as np
from jaxtyping import Shaped

from wsss_jax.formats import onnx_graphs
from wsss_jax.formats.onnx_graphs import Graph

_LOST = "onnx::"
"""What begins the names of values that the exporter computed."""

_POSITION = "position_embeddings"
"""The library transformers' name, in a layer ``embeddings``."""


def read(path: Path) -> dict[str, Shaped[np.ndarray, "..."]]:
    """Every weight of the file by its name in PyTorch; whole numbers are shapes and left out.

    Raises MissingFileError and BadFileError, as ``onnx_graphs.read``.
    """
    return named(onnx_graphs.read(path))


def named(graph: Graph) -> dict[str, Shaped[np.ndarray, "..."]]:
    """The weights of a graph. Values whose layer cannot be told are left out."""
    numbers = {n: x for n, x in graph.arrays.items() if np.issubdtype(x.dtype, np.floating)}
    found = {name: x for name, x in numbers.items() if not name.startswith(_LOST)}
    positions: dict[str, list[np.ndarray]] = {}
    for node in graph.nodes:
        layer = ".".join(node.name.strip("/").split("/")[:-1])
        for value in (numbers[n] for n in node.inputs if n.startswith(_LOST) and n in numbers):
            if node.operation == "MatMul" and value.ndim == 2:
                found[f"{layer}.weight"] = value.T  # PyTorch has rows of outputs
            elif layer.split(".")[-1] == "embeddings" and value.ndim == 3:
                positions.setdefault(f"{layer}.{_POSITION}", []).append(value)
    for name, parts in positions.items():
        found[name] = _joined(parts)
    return found


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    """A position embedding that was cut into the class token's (1,1,k) and the patches' (1,n,k)."""
    ordered = sorted(parts, key=lambda part: part.shape[1])
    fits = len(parts) == 2 and ordered[0].shape == (1, 1, ordered[1].shape[2])
    return np.concatenate(ordered, axis=1) if fits else ordered[-1]
