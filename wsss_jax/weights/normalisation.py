"""How a network wants its pixels: the mean and standard deviation that its weights were made with.

This belongs to the weights and not to the network: Google's vision transformers take 0.5, DeiT,
DINO and MAE the statistics of ImageNet, CLIP its own, all of one architecture. It is read from what
the file records, from the table of known weights, or from names that only one kind of file has.
Where none of these tells it, it is asked for and never guessed.
"""

import json
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from wsss_jax.errors import UserError


class Normalisation(NamedTuple):
    """Per channel (RGB in [0, 1]): ``(image - mean) / std``."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


IMAGENET = Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = Normalisation((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
CLIP = Normalisation(
    (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
)  # fmt: skip
LITE = Normalisation((127 / 255,) * 3, (128 / 255,) * 3)

NORMALISATIONS: Mapping[str, Normalisation] = MappingProxyType(
    {"imagenet": IMAGENET, "half": HALF, "clip": CLIP, "lite": LITE}
)
"""What ``--normalise`` takes by name. lite: (x - 127) / 128 of EfficientNet-Lite."""

_MARKS: tuple[tuple[str, Normalisation | None], ...] = (
    # Google's own code scales to [-1, 1] (vision_transformer, big_vision), hybrids included.
    ("Transformer/encoder_norm/scale", HALF),
    ("params/Transformer/encoder_norm/scale", HALF),
    ("params/img/Transformer/encoder_norm/scale", HALF),
    ("patch_embed.backbone.stem.conv.weight", HALF),
    ("stem/root/kernel", HALF),
    # torchvision, distilled DeiT; DINOv2 and DeiT III by their LayerScale.
    ("encoder.layers.encoder_layer_0.ln_1.weight", IMAGENET),
    ("dist_token", IMAGENET),
    # DINOv3 was trained on satellite images too; CLIP's descendants take CLIP's or 0.5.
    ("rope_embed.periods", None),
    ("storage_tokens", None),
    ("norm_pre.weight", None),
    ("visual.ln_pre.weight", None),
    ("blocks.0.ls1.gamma", IMAGENET),
    ("encoder.layer.0.layer_scale1.lambda1", IMAGENET),
    ("encoder.layer.0.attention.attention.query.weight", None),
    # Plain transformers: AugReg 0.5, DeiT, DINO, MAE ImageNet. The second are our own names.
    ("blocks.0.attn.qkv.weight", None),
    ("encoder/blocks/0/query_key_value/kernel", None),
)
"""The first name that a file has decides: its normalisation, or None where it must be asked for."""


def parsed(text: str) -> Normalisation:
    """A name of NORMALISATIONS, or six numbers ``mean,mean,mean/std,std,std``. Else UserError."""
    if text in NORMALISATIONS:
        return NORMALISATIONS[text]
    try:
        mean, std = (tuple(float(x) for x in part.split(",")) for part in text.split("/"))
        return checked(mean, std)
    except ValueError as problem:
        raise UserError(
            f"normalise {text!r}: wanted {', '.join(NORMALISATIONS)}, or numbers as in "
            "0.485,0.456,0.406/0.229,0.224,0.225 (mean/std of RGB in [0, 1])"
        ) from problem


def named(normalisation: Normalisation) -> str:
    """The text that ``parsed`` takes back: a name where there is one, else six numbers."""
    for name, known in NORMALISATIONS.items():
        if all(
            abs(a - b) < 1e-6
            for ours, theirs in zip(normalisation, known, strict=True)
            for a, b in zip(ours, theirs, strict=True)
        ):
            return name
    return "/".join(",".join(map(repr, part)) for part in normalisation)


def checked(mean: Iterable[float], std: Iterable[float]) -> Normalisation:
    """Three finite means and three positive deviations of RGB in [0, 1]. Else ValueError."""
    means, stds = tuple(map(float, mean)), tuple(map(float, std))
    if len(means) != 3 or len(stds) != 3:
        raise UserError(f"mean of {len(means)} and std of {len(stds)} numbers, wanted 3 each")
    if not all(-1 <= m <= 2 for m in means) or not all(1e-3 <= s <= 2 for s in stds):
        raise UserError(f"mean {means} and std {stds} are none of RGB in [0, 1]")
    return Normalisation(means, stds)


def recorded(about: Mapping[str, str], called: str) -> Normalisation | None:
    """What the notes of a file say under ``mean`` and ``std`` (JSON lists), None without them.

    Raises UserError where they are there and make no sense.
    """
    if "mean" not in about and "std" not in about:
        return None
    try:
        return checked(*(json.loads(about[part]) for part in ("mean", "std")))
    except (KeyError, TypeError, ValueError, RecursionError) as problem:
        raise UserError(f"{called}: records a damaged normalisation ({problem})") from problem


def by_names(names: Iterable[str], own: Normalisation | None) -> Normalisation | None:
    """What the names of a file's arrays tell; None where files of such names differ.

    own: of names without a mark: the network's, for networks whose public files all use it
    (residual networks, MobileNets, EfficientNet-Lite).
    """
    found = set(names)
    for mark, normalisation in _MARKS:
        if mark in found:
            return normalisation
    return own


def decided(
    asked: str | None, known: Normalisation | None, called: str, because: str
) -> Normalisation:
    """The normalisation that is known, or the one that was asked for where none is.

    Raises UserError where neither is there, and where the two contradict each other.
    """
    if asked is None and known is None:
        raise UserError(
            f"{called} does not record how its images were normalised, and weights of this kind "
            "differ in it. Add --normalise imagenet (DeiT, DINO, MAE), half (Google, AugReg: "
            "timm's vit_*.augreg_*) or clip (CLIP of OpenAI); `wsss weights convert` with that "
            "flag writes it into the file"
        )
    given = None if asked is None else parsed(asked)
    if given is not None and known is not None and named(given) != named(known):
        raise UserError(
            f"{called} is made for {named(known)} ({because}), not for --normalise {asked}; "
            "leave the flag away"
        )
    chosen = given if known is None else known
    assert chosen is not None
    return chosen
