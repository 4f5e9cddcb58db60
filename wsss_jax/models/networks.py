"""Whole networks that answer for every pixel, from the names of their backbones."""

from pathlib import Path
from typing import Any

from flax import nnx

from wsss_jax.models import build
from wsss_jax.models.foreground import Foreground
from wsss_jax.models.segmenter import Segmenter


def segmenter(
    name: str,
    outputs: int,
    *,
    key: Any,
    output_stride: int,
    width: int = 256,
    pretrained: Path | None = None,
) -> Segmenter:
    """DeepLabV3+ for ``outputs`` classes, background included, on the named backbone.

    width: channels behind the backbone. key: of the random start. pretrained: weight file that
    then fills the backbone. ValueError for an unknown name, or a file that does not fit.
    """
    rngs = nnx.Rngs(key)
    body = build.backbone(name, rngs=rngs, output_stride=output_stride, pretrained=pretrained)
    return Segmenter(body, outputs, width=width, rngs=rngs)


def foreground(
    name: str, *, key: Any, output_stride: int, pretrained: Path | None = None
) -> Foreground:
    """The network of C2AM on the named backbone; arguments and errors as for ``segmenter``."""
    rngs = nnx.Rngs(key)
    body = build.backbone(name, rngs=rngs, output_stride=output_stride, pretrained=pretrained)
    return Foreground(body, rngs=rngs)
