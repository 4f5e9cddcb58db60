"""What the names in public files of vision transformers mean: those of PyTorch packages.

timm's (which DINOv2, DeiT and DINO share), OpenAI's and open_clip's CLIP, torchvision's, and the
hub's transformers. Google's are in ``vit_names_google``. The position embedding is resampled to
the grid that the network was built with; LayerScale is folded into the layer before it. Paths are
those of ``vit.ViT``, ``vit_hybrid.HybridViT`` and ``token_classifier.TokenClassifier``.
"""

import re
from collections.abc import Iterable, Mapping
from functools import partial
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Shaped

from wsss_jax.weights import vit_names_google
from wsss_jax.weights.import_names import Source, Table, as_is
from wsss_jax.weights.vit_names_shapes import (
    flat,
    further_tokens,
    joined_torch,
    masked,
    no_bias,
    on_grid,
    patches,
    position,
    rows,
    scaled,
    scaled_bias,
    some_biases,
    token_position,
    transposed,
)

Arrays = Mapping[str, Shaped[np.ndarray, "..."]]

POSITION = "encoder/position"
"""Path of the position embedding, below the backbone."""

TOKEN = "encoder/token"
"""Path of the class token, which every transformer has."""


class Layout(NamedTuple):
    """How one package calls the layers of a transformer.

    block: what begins the names of block {n}. layers: our layer of a block to theirs; of
    query_key_value the name without ``weight``, or three names. scale1, scale2: LayerScale behind
    attention and perceptron. token, position, further: the class token, the embedding of all
    positions, and registers. ignored: what a backbone does not use.
    """

    block: str
    layers: Mapping[str, str | tuple[str, str, str]]
    patches: str
    token: str
    position: str
    first_norm: str
    norm: str
    head: str
    ignored: str
    scale1: tuple[str, ...] = ("ls1.gamma", "gamma_1")
    scale2: tuple[str, ...] = ("ls2.gamma", "gamma_2")
    further: tuple[str, ...] = ("reg_token", "register_tokens", "storage_tokens")


_BY_TIMM = {
    "norm1": "norm1", "query_key_value": "attn.qkv.", "project": "attn.proj", "norm2": "norm2",
    "expand": "mlp.fc1", "contract": "mlp.fc2",
}  # fmt: skip

_FUSED = "attn.qkv.bias"

TIMM = Layout(
    "blocks.{n}.", _BY_TIMM, "patch_embed.proj", "cls_token", "pos_embed", "norm_pre", "norm",
    "head", 
    r"(head|fc_norm|pre_logits|head_dist)[./]|mask_token$|rope(_embed)?\.periods$",
)  # fmt: skip

_BY_OPENAI = {
    "norm1": "ln_1", "query_key_value": "attn.in_proj_", "project": "attn.out_proj",
    "norm2": "ln_2", "expand": "mlp.c_fc", "contract": "mlp.c_proj",
}  # fmt: skip

OPENAI = Layout(
    "visual.transformer.resblocks.{n}.", _BY_OPENAI, "visual.conv1", "visual.class_embedding",
    "visual.positional_embedding", "visual.ln_pre", "visual.ln_post", "visual.head",
    r"(visual\.proj|positional_embedding|text_projection|logit_scale|logit_bias|attn_mask"
    r"|input_resolution|context_length|vocab_size)$|transformer\.|token_embedding\.|ln_final\.",
)  # fmt: skip

_BY_TORCHVISION = {
    "norm1": "ln_1", "query_key_value": "self_attention.in_proj_",
    "project": "self_attention.out_proj", "norm2": "ln_2", "expand": "mlp.0", "contract": "mlp.3",
}  # fmt: skip

TORCHVISION = Layout(
    "encoder.layers.encoder_layer_{n}.", _BY_TORCHVISION, "conv_proj", "class_token",
    "encoder.pos_embedding", "encoder.ln_pre", "encoder.ln", "heads.head", r"heads\.",
)  # fmt: skip

OLDER_TORCHVISION = TORCHVISION._replace(
    layers=_BY_TORCHVISION | {"expand": "mlp.linear_1", "contract": "mlp.linear_2"}
)

_SELF = "attention.attention."
_BY_TRANSFORMERS = {
    "norm1": "norm1", "query_key_value": (f"{_SELF}query.", f"{_SELF}key.", f"{_SELF}value."),
    "project": "attention.output.dense", "norm2": "norm2", "expand": "mlp.fc1",
    "contract": "mlp.fc2",
}  # fmt: skip

TRANSFORMERS_DINOV2 = Layout(
    "encoder.layer.{n}.", _BY_TRANSFORMERS, "embeddings.patch_embeddings.projection",
    "embeddings.cls_token", "embeddings.position_embeddings", "embeddings.norm", "layernorm",
    "classifier", r"(classifier|pooler)\.|embeddings\.mask_token$",
    scale1=("layer_scale1.lambda1",), scale2=("layer_scale2.lambda1",),
    further=("embeddings.register_tokens",),
)  # fmt: skip

TRANSFORMERS_VIT = TRANSFORMERS_DINOV2._replace(
    layers=_BY_TRANSFORMERS
    | {
        "norm1": "layernorm_before",
        "norm2": "layernorm_after",
        "expand": "intermediate.dense",
        "contract": "output.dense",
    },
    further=(),
)

TRANSFORMERS_DINOV3 = TRANSFORMERS_DINOV2._replace(
    block="layer.{n}.",
    layers={
        "norm1": "norm1", "norm2": "norm2", "expand": "mlp.up_proj", "contract": "mlp.down_proj",
        "query_key_value": ("attention.q_proj.", "attention.k_proj.", "attention.v_proj."),
        "project": "attention.o_proj",
    },
    patches="embeddings.patch_embeddings",
    norm="norm",
)  # fmt: skip

LAYOUTS = (
    TIMM,
    OPENAI,
    TORCHVISION,
    OLDER_TORCHVISION,
    TRANSFORMERS_DINOV2,
    TRANSFORMERS_VIT,
    TRANSFORMERS_DINOV3,
)

DISTILLATION = ("dist_token", "embeddings.distillation_token")
"""DeiT's second token, in the files of timm and of the hub's transformers."""

_WRAPPERS = re.compile(r"(vit|deit|dinov2|dinov2_with_registers|vision_model)\.(?=emb|enc|lay)")


def tables(paths: Iterable[str], arrays: Arrays) -> tuple[dict[str, np.ndarray], Table]:
    """Arrays under their plain names, and the table of the layout that they have.

    paths: of the network's values. Of the layouts the one is taken of which the file has most
    names; Google's are told by their own.
    """
    paths = list(paths)
    if vit_names_google.is_ours(arrays):
        plain, sources = vit_names_google.sources(paths, arrays)
        return plain, Table(sources, _never if "kernel" in paths else _is_head)
    plain = {_WRAPPERS.sub("", name, count=1): x for name, x in arrays.items()}
    found = [
        (layout, {p: s for p in paths if (s := _source(layout, p, plain)) is not None})
        for layout in LAYOUTS
    ]
    layout, sources = max(found, key=lambda pair: _present(pair[1], plain))
    ignored = re.compile(layout.ignored if "kernel" not in paths else r"mask_token$")
    return plain, Table(sources, lambda name: ignored.match(name) is not None)


def own_position(x: Float[np.ndarray, "g1 g2 k"], shape: tuple) -> np.ndarray:
    """A position embedding in our own layout, on the network's grid."""
    return on_grid(x, shape)


def _present(sources: Mapping[str, Source], arrays: Arrays) -> int:
    return sum(name in arrays for source in sources.values() for name in source.names)


def _is_head(name: str) -> bool:
    return re.match(r"(head|pre_logits)[./]", name) is not None


def _never(name: str) -> bool:
    return False


def _source(layout: Layout, path: str, arrays: Arrays) -> Source | None:
    path = path.removeprefix("backbone/")
    if path.startswith("encoder/blocks/"):
        _, _, n, layer, part = path.split("/")
        return _of_block(layout, layout.block.format(n=n), layer, part, arrays)
    if path.startswith("stem/"):
        return _timm_stem(path.split("/")[1:])
    bias = f"{layout.patches}.bias"
    no_patch_bias = bias not in arrays and f"{layout.first_norm}.weight" in arrays  # CLIP
    whole = {
        "embed/kernel": Source((f"{layout.patches}.weight",), patches),
        "embed/bias": Source((), no_bias) if no_patch_bias else Source((bias,), as_is),
        "encoder/token": Source((layout.token,), flat),
        "encoder/token_position": Source((layout.position,), token_position),
        "encoder/position": Source((layout.position,), position),
        "encoder/further": _further(layout, arrays),
        "encoder/first_norm/scale": Source((f"{layout.first_norm}.weight",), as_is),
        "encoder/first_norm/bias": Source((f"{layout.first_norm}.bias",), as_is),
        "encoder/norm/scale": Source((f"{layout.norm}.weight",), as_is),
        "encoder/norm/bias": Source((f"{layout.norm}.bias",), as_is),
        "kernel": Source((f"{layout.head}.weight",), transposed),
        "bias": Source((f"{layout.head}.bias",), as_is),
    }
    return whole.get(path)


def _of_block(layout: Layout, root: str, layer: str, part: str, arrays: Arrays) -> Source:
    theirs, torch_part = layout.layers[layer], "bias" if part == "bias" else "weight"
    if layer == "query_key_value":
        parts = theirs if isinstance(theirs, tuple) else (theirs,)
        names = tuple(f"{root}{name}{torch_part}" for name in parts)
        return Source(names, joined_torch) if part == "kernel" else _three_biases(names, arrays)
    assert isinstance(theirs, str), layer
    scales = {"project": layout.scale1, "contract": layout.scale2}.get(layer, ())
    for scale in (f"{root}{name}" for name in scales):
        if scale in arrays:
            names = (f"{root}{theirs}.{torch_part}", scale)
            return Source(names, scaled if part == "kernel" else scaled_bias)
    return _dense(f"{root}{theirs}", part)


def _three_biases(names: tuple[str, ...], arrays: Arrays) -> Source:
    """Biases of query, key and value, of which files of DINOv3 lack the key's or all.

    Its authors' own file has all three and a mask (1, 0 or NaN) of those that count.
    """
    if len(names) == 3:
        there = tuple(name in arrays for name in names)
        found = tuple(name for name in names if name in arrays)
        return Source(found, partial(some_biases, there))
    (name,) = names
    mask = f"{name}_mask"
    if mask in arrays:
        return Source((name, mask), masked)
    if not name.endswith(_FUSED) or any(other.endswith(_FUSED) for other in arrays):
        return Source(names, as_is)
    root = name.removesuffix("qkv.bias")
    return _three_biases((f"{root}q_bias", f"{root}k_bias", f"{root}v_bias"), arrays)


def _further(layout: Layout, arrays: Arrays) -> Source:
    """Registers as they are, or DeiT's distillation token with its position."""
    for name in DISTILLATION:
        if name in arrays:
            return Source((name, layout.position), further_tokens)
    return Source((next((n for n in layout.further if n in arrays), "register_tokens"),), rows)


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
        return Source((f"{name}.weight",), transposed)
    return Source((f"{name}.{'weight' if part == 'scale' else 'bias'}",), as_is)


def _convolution(name: str, part: str) -> Source:
    if part == "kernel":
        return Source((f"{name}.weight",), lambda x, _: x.transpose(2, 3, 1, 0))
    return _dense(name, part)
