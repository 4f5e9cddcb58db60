"""What the names in Google's files of vision transformers mean, old and new.

Those of vision_transformer (``Transformer/encoderblock_0/MultiHeadDotProductAttention_1``) and of
big_vision (prefix ``params/`` or ``params/img/``, modules counted from 0 each, blocks perhaps
stacked into one ``encoderblock``).
"""

import re
from collections.abc import Iterable, Mapping

import numpy as np
from jaxtyping import Shaped

from wsss_jax.weights.import_names import Source, as_is
from wsss_jax.weights.vit_names_shapes import (
    flat,
    joined,
    position,
    reshaped,
    shaped,
    token_position,
)

Arrays = Mapping[str, Shaped[np.ndarray, "..."]]


def is_ours(arrays: Arrays) -> bool:
    """Whether a file is one of Google's."""
    return any("Transformer/" in name for name in arrays)


def sources(
    paths: Iterable[str], arrays: Arrays
) -> tuple[dict[str, np.ndarray], dict[str, Source]]:
    """Arrays under their plain names, and where the value of each path is."""
    plain = _unstacked({re.sub(r"^params/(img/)?", "", name): x for name, x in arrays.items()})
    return plain, {p: s for p in paths if (s := _google(p, plain)) is not None}


def _google(path: str, plain: Arrays) -> Source | None:
    path = path.removeprefix("backbone/")
    if path.startswith("encoder/blocks/"):
        return _google_block(path.split("/")[2:], plain)
    if path.startswith("stem/"):
        return _google_stem(path.split("/")[1:])
    old = "Transformer/posembed_input/pos_embedding"
    positions = old if old in plain else "pos_embedding"
    whole = {
        "embed/kernel": Source(("embedding/kernel",), reshaped),
        "embed/bias": Source(("embedding/bias",), as_is),
        "encoder/token": Source(("cls",), flat),
        "encoder/token_position": Source((positions,), token_position),
        "encoder/position": Source((positions,), position),
        "encoder/norm/scale": Source(("Transformer/encoder_norm/scale",), as_is),
        "encoder/norm/bias": Source(("Transformer/encoder_norm/bias",), as_is),
        "kernel": Source(("head/kernel",), as_is),
        "bias": Source(("head/bias",), as_is),
    }
    return whole.get(path)


def _google_block(parts: list[str], plain: Arrays) -> Source:
    n, layer, part = parts
    root = f"Transformer/encoderblock_{n}/"
    newer = f"{root}LayerNorm_1/scale" in plain
    attention = next(
        (
            a
            for a in ("MHDPA_0", "MultiHeadDotProductAttention_0")
            if f"{root}{a}/out/bias" in plain
        ),
        "MultiHeadDotProductAttention_1",
    )
    mlp = "MlpBlock_0" if newer else "MlpBlock_3"
    if layer == "query_key_value":
        names = tuple(f"{root}{attention}/{q}/{part}" for q in ("query", "key", "value"))
        return Source(names, joined)
    where = {
        "norm1": "LayerNorm_0", "norm2": "LayerNorm_1" if newer else "LayerNorm_2",
        "project": f"{attention}/out", "expand": f"{mlp}/Dense_0", "contract": f"{mlp}/Dense_1",
    }  # fmt: skip
    return Source((f"{root}{where[layer]}/{part}",), reshaped)


def _google_stem(parts: list[str]) -> Source:
    if parts[0] in ("root", "norm"):
        return Source((f"{'conv_root' if parts[0] == 'root' else 'gn_root'}/{parts[1]}",), shaped)
    _, stage, unit, layer, part = parts
    layer = layer.replace("norm", "gn")
    return Source((f"block{int(stage) + 1}/unit{int(unit) + 1}/{layer}/{part}",), shaped)


def _unstacked(arrays: Arrays) -> dict[str, np.ndarray]:
    """Blocks stacked along their first axis (``encoderblock/``) as one name per block."""
    plain = {}
    for name, x in arrays.items():
        if name.startswith("Transformer/encoderblock/"):
            for n, part in enumerate(x):
                plain[name.replace("encoderblock", f"encoderblock_{n}")] = part
        else:
            plain[name] = x
    return plain
