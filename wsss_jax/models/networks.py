"""Whole networks that answer for every pixel, from the names of their backbones."""

from pathlib import Path

from flax import nnx
from jaxtyping import PRNGKeyArray

from wsss_jax.models import build
from wsss_jax.models.foreground import Foreground
from wsss_jax.models.segmenter import Segmenter


def segmenter(
    name: str,
    outputs: int,
    *,
    key: PRNGKeyArray,
    output_stride: int,
    width: int = 256,
    pretrained: Path | None = None,
    normalise: str | None = None,
) -> Segmenter:
    """DeepLabV3+ for ``outputs`` classes, background included, on the named backbone.

    width: channels behind the backbone. key: of the random start. pretrained, normalise: weights
    that then fill the backbone, and how images are normalised for them (``build.backbone``).
    UserError for an unknown name, or weights that do not fit.
    """
    rngs = nnx.Rngs(key)
    body = build.backbone(
        name, rngs=rngs, output_stride=output_stride, pretrained=pretrained, normalise=normalise
    )
    return Segmenter(body, outputs, width=width, rngs=rngs)


def foreground(
    name: str,
    *,
    key: PRNGKeyArray,
    output_stride: int,
    pretrained: Path | None = None,
    normalise: str | None = None,
) -> Foreground:
    """The network of C2AM on the named backbone; arguments and errors as for ``segmenter``."""
    rngs = nnx.Rngs(key)
    body = build.backbone(
        name, rngs=rngs, output_stride=output_stride, pretrained=pretrained, normalise=normalise
    )
    return Foreground(body, rngs=rngs)
