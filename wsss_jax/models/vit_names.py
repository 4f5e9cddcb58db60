"""What the names in public files of vision transformers mean: timm's, and Google's old and new.

The position embedding is resampled to the grid that the network was built with. Paths are those of
``vit.ViT``, ``vit_hybrid.HybridViT`` and ``token_classifier.TokenClassifier``.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Shaped

from wsss_jax.models.import_names import Source, Table, as_is
from wsss_jax.models.vit import resampled

Arrays = Mapping[str, Shaped[np.ndarray, "..."]]

_TIMM = {
    "norm1": "norm1", "query_key_value": "attn.qkv", "project": "attn.proj", "norm2": "norm2",
    "expand": "mlp.fc1", "contract": "mlp.fc2",
}  # fmt: skip

_UNUSED = re.compile(r"(head|fc_norm|pre_logits|head_dist)[./]")
"""Layers after the last norm, which a backbone without classifier does not have."""


POSITION = "encoder/position"
"""Path of the position embedding, below the backbone."""


def tables(paths: Iterable[str], arrays: Arrays) -> tuple[dict[str, np.ndarray], Table]:
    """Arrays under their plain names, and the table of the layout that they have.

    paths: of the network's values. Google's files are those of vision_transformer
    (``Transformer/encoderblock_0/MultiHeadDotProductAttention_1``) and of big_vision (prefix
    ``params/`` or ``params/img/``, modules counted from 0 each, blocks perhaps stacked into one
    ``encoderblock``); any others are read as timm's.
    """
    paths = list(paths)
    ignored = _never if "kernel" in paths else _is_head
    if not any("Transformer/" in name for name in arrays):
        return dict(arrays), Table({p: s for p in paths if (s := _timm(p)) is not None}, ignored)
    plain = _unstacked({re.sub(r"^params/(img/)?", "", name): x for name, x in arrays.items()})
    return plain, Table({p: s for p in paths if (s := _google(p, plain)) is not None}, ignored)


def own_position(x: Float[np.ndarray, "g1 g2 k"], shape: tuple) -> np.ndarray:
    """A position embedding in our own layout, on the network's grid."""
    return _on_grid(x, shape)


def _is_head(name: str) -> bool:
    return _UNUSED.match(name) is not None


def _never(name: str) -> bool:
    return False


def _timm(path: str) -> Source | None:
    path = path.removeprefix("backbone/")
    if path.startswith("encoder/blocks/"):
        _, _, n, layer, part = path.split("/")
        return _dense(f"blocks.{n}.{_TIMM[layer]}", part)
    if path.startswith("stem/"):
        return _timm_stem(path.split("/")[1:])
    if path == "embed/kernel":
        return Source(("patch_embed.proj.weight",), _patches)
    whole = {
        "embed/bias": Source(("patch_embed.proj.bias",), as_is),
        "encoder/token": Source(("cls_token",), _flat),
        "encoder/token_position": Source(("pos_embed",), _token_position),
        "encoder/position": Source(("pos_embed",), _position),
        "encoder/norm/scale": Source(("norm.weight",), as_is),
        "encoder/norm/bias": Source(("norm.bias",), as_is),
        "kernel": Source(("head.weight",), _transposed),
        "bias": Source(("head.bias",), as_is),
    }
    return whole.get(path)


def _timm_stem(parts: list[str]) -> Source:
    root = "patch_embed.backbone."
    if parts[0] in ("root", "norm"):
        layer = "conv" if parts[0] == "root" else "norm"
        return _convolution(f"{root}stem.{layer}", parts[1])
    _, stage, unit, layer, part = parts
    layer = layer.replace("conv_proj", "downsample.conv").replace("norm_proj", "downsample.norm")
    return _convolution(f"{root}stages.{stage}.blocks.{unit}.{layer}", part)


def _dense(name: str, part: str) -> Source:
    if part == "kernel":
        return Source((f"{name}.weight",), _transposed)
    return Source((f"{name}.{'weight' if part == 'scale' else 'bias'}",), as_is)


def _convolution(name: str, part: str) -> Source:
    if part == "kernel":
        return Source((f"{name}.weight",), lambda x, _: x.transpose(2, 3, 1, 0))
    return _dense(name, part)


def _google(path: str, plain: Arrays) -> Source | None:
    path = path.removeprefix("backbone/")
    if path.startswith("encoder/blocks/"):
        return _google_block(path.split("/")[2:], plain)
    if path.startswith("stem/"):
        return _google_stem(path.split("/")[1:])
    old = "Transformer/posembed_input/pos_embedding"
    position = old if old in plain else "pos_embedding"
    whole = {
        "embed/kernel": Source(("embedding/kernel",), _reshaped),
        "embed/bias": Source(("embedding/bias",), as_is),
        "encoder/token": Source(("cls",), _flat),
        "encoder/token_position": Source((position,), _token_position),
        "encoder/position": Source((position,), _position),
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
        return Source(names, _joined)
    where = {
        "norm1": "LayerNorm_0", "norm2": "LayerNorm_1" if newer else "LayerNorm_2",
        "project": f"{attention}/out", "expand": f"{mlp}/Dense_0", "contract": f"{mlp}/Dense_1",
    }  # fmt: skip
    return Source((f"{root}{where[layer]}/{part}",), _reshaped)


def _google_stem(parts: list[str]) -> Source:
    if parts[0] in ("root", "norm"):
        return Source((f"{'conv_root' if parts[0] == 'root' else 'gn_root'}/{parts[1]}",), _shaped)
    _, stage, unit, layer, part = parts
    layer = layer.replace("norm", "gn")
    return Source((f"block{int(stage) + 1}/unit{int(unit) + 1}/{layer}/{part}",), _shaped)


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


def _flat(x: np.ndarray, shape: tuple) -> np.ndarray:
    return x.reshape(-1)


def _shaped(x: np.ndarray, shape: tuple) -> np.ndarray:
    """Norms of the old files are stored as (1,1,1,k)."""
    return x.reshape(shape) if x.ndim == 4 and len(shape) == 1 else x


def _reshaped(x: np.ndarray, shape: tuple) -> np.ndarray:
    """Axes split in the file are one here, such as (heads,d,k) for (k,k)."""
    return x.reshape(shape)


def _transposed(x: np.ndarray, shape: tuple) -> np.ndarray:
    return x.T


def _patches(x: np.ndarray, shape: tuple) -> np.ndarray:
    """(k,3,p,p) to (p*p*3,k); the 1×1 embedding of the hybrid falls out of the same line."""
    return x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0])


def _joined(*arrays: Any) -> np.ndarray:
    """Query, key and value of (k,heads,d) or (heads,d) side by side."""
    *parts, shape = arrays
    return np.concatenate([x.reshape(*shape[:-1], -1) for x in parts], axis=-1)


def _token_position(x: Float[np.ndarray, "1 n k"], shape: tuple) -> np.ndarray:
    """The class token's own position; zero where the file has positions of patches only."""
    return x[0, 0] if _with_token(x.shape[1]) else np.zeros(x.shape[2], x.dtype)


def _position(x: Float[np.ndarray, "1 n k"], shape: tuple) -> np.ndarray:
    """Positions of the patches as a grid of the network's size."""
    n = x.shape[1] - _with_token(x.shape[1])
    side = round(n**0.5)
    grid = x[0, x.shape[1] - n :].reshape(side, side, -1)
    return _on_grid(grid, shape)


def _on_grid(grid: np.ndarray, shape: tuple) -> np.ndarray:
    """Exactly the same where the grid already is the wanted one."""
    if grid.shape == shape:
        return grid
    return np.asarray(resampled(jnp.asarray(grid, jnp.float32), (shape[0], shape[1]))[0])


def _with_token(count: int) -> bool:
    """Public files have square grids: a square number of positions leaves none for the token."""
    return round(count**0.5) ** 2 != count
