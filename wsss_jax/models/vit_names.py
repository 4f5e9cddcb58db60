"""Pretrained vision transformers by name: timm's state dicts, and Google's npz old and new.

Every name of a file is used once and every parameter is filled, or one error lists all that is
wrong. The position embedding is resampled to the grid that the network was built with. Names are
those of ``vit.ViT``, ``vit_hybrid.HybridViT`` and ``token_classifier.TokenClassifier``.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float, Shaped

from wsss_jax.models.import_files import read_arrays
from wsss_jax.models.vit import resampled

Arrays = Mapping[str, Shaped[np.ndarray, "..."]]
Convert = Callable[..., np.ndarray]


class Source(NamedTuple):
    """Which arrays of a file make one parameter, and how."""

    names: tuple[str, ...]
    convert: Convert


_TIMM = {
    "norm1": "norm1", "query_key_value": "attn.qkv", "project": "attn.proj", "norm2": "norm2",
    "expand": "mlp.fc1", "contract": "mlp.fc2",
}  # fmt: skip

_UNUSED = re.compile(r"(head|fc_norm|pre_logits|head_dist)[./]")
"""Layers after the last norm, which a backbone without classifier does not have."""


def load(module: nnx.Module, path: Path) -> None:
    """Fill a transformer from a weight file of any layout that ``import_files`` reads.

    Raises ValueError as ``load_arrays``, naming the file.
    """
    arrays = read_arrays(path)
    try:
        load_arrays(module, arrays)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def load_arrays(module: nnx.Module, arrays: Arrays) -> None:
    """Fill every parameter of a transformer from the arrays of one file, by their names there.

    Raises ValueError listing all missing, unused and mis-shaped names, the latter with both
    shapes; the network is then unchanged.
    """
    params = {
        "/".join(map(str, path)): param
        for path, param in nnx.to_flat_state(nnx.state(module, nnx.Param))
    }
    google = any("Transformer/" in name for name in arrays)
    arrays, table = google_names(arrays, params) if google else (arrays, timm_names(params))
    problems, values, used = [], {}, set()
    for path, source in table.items():
        used |= set(source.names)
        missing = [name for name in source.names if name not in arrays]
        problems += [f"{name}: missing, wanted for {path}" for name in missing]
        if missing:
            continue
        found, shape = [arrays[name] for name in source.names], params[path].shape
        shapes = ", ".join(str(x.shape) for x in found)
        try:
            value = source.convert(*found, shape)
        except ValueError:
            value = None
        if value is None or value.shape != shape:
            names = " + ".join(source.names)
            problems.append(f"{names}: shape {shapes} in the file, {path} in the network {shape}")
        values[path] = value
    problems += [f"{path}: filled by nothing in the table" for path in params if path not in table]
    ignored = _UNUSED if "kernel" not in params else re.compile("(?!)")
    problems += [
        f"{name}: in the file, used by nothing"
        for name in arrays
        if name not in used and not ignored.match(name)
    ]
    if problems:
        raise ValueError(
            f"the weights do not fit {type(module).__name__}:\n  " + "\n  ".join(problems)
        )
    for path, value in values.items():
        params[path].set_value(jnp.asarray(value, params[path].dtype))


def timm_names(params: Mapping[str, object]) -> dict[str, Source]:
    """Our path to names in a timm state dict, for every parameter that has one."""
    return {path: source for path in params if (source := _timm(path)) is not None}


def google_names(
    arrays: Arrays, params: Mapping[str, object]
) -> tuple[dict[str, np.ndarray], dict[str, Source]]:
    """Arrays under their plain names, and our path to those names.

    Files of vision_transformer (``Transformer/encoderblock_0/MultiHeadDotProductAttention_1``) and
    of big_vision (prefix ``params/`` or ``params/img/``, modules counted from 0 each, blocks
    perhaps stacked into one ``encoderblock``).
    """
    plain = _unstacked({re.sub(r"^params/(img/)?", "", name): x for name, x in arrays.items()})
    return plain, {path: s for path in params if (s := _google(path, plain)) is not None}


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
        "embed/bias": Source(("patch_embed.proj.bias",), _as_is),
        "encoder/token": Source(("cls_token",), _flat),
        "encoder/token_position": Source(("pos_embed",), _token_position),
        "encoder/position": Source(("pos_embed",), _position),
        "encoder/norm/scale": Source(("norm.weight",), _as_is),
        "encoder/norm/bias": Source(("norm.bias",), _as_is),
        "kernel": Source(("head.weight",), _transposed),
        "bias": Source(("head.bias",), _as_is),
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
    return Source((f"{name}.{'weight' if part == 'scale' else 'bias'}",), _as_is)


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
        "embed/bias": Source(("embedding/bias",), _as_is),
        "encoder/token": Source(("cls",), _flat),
        "encoder/token_position": Source((position,), _token_position),
        "encoder/position": Source((position,), _position),
        "encoder/norm/scale": Source(("Transformer/encoder_norm/scale",), _as_is),
        "encoder/norm/bias": Source(("Transformer/encoder_norm/bias",), _as_is),
        "kernel": Source(("head/kernel",), _as_is),
        "bias": Source(("head/bias",), _as_is),
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


def _as_is(x: np.ndarray, shape: tuple) -> np.ndarray:
    return x


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
    resized = resampled(jnp.asarray(grid, jnp.float32), (shape[0], shape[1]))[0]
    return np.asarray(resized)


def _with_token(count: int) -> bool:
    """Public files have square grids: a square number of positions leaves none for the token."""
    return round(count**0.5) ** 2 != count
