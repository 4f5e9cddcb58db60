"""Whole networks from their names: what systems ask for."""

from pathlib import Path
from typing import Any

from flax import nnx

from wsss_jax.config import lookup
from wsss_jax.models import BACKBONES, weights
from wsss_jax.models.heads import Classifier
from wsss_jax.models.segmenter import Segmenter


def classifier(
    name: str,
    classes: int,
    *,
    key: Any,
    output_stride: int,
    pretrained: Path | None = None,
    dropout: float = 0.0,
) -> Classifier:
    """A classifier over ``classes`` classes on the named backbone.

    key: of the random start. pretrained: weight file that then fills the backbone. Raises
    ValueError for an unknown name, or a file that does not fit (naming every misfit).
    """
    rngs = nnx.Rngs(key)
    backbone = lookup(BACKBONES, name, "backbone")(rngs=rngs, output_stride=output_stride)
    if pretrained is not None:
        weights.load(backbone, pretrained)
    return Classifier(backbone, classes, rngs=rngs, dropout=dropout)


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

    width: channels behind the backbone. key, pretrained and errors as for ``classifier``.
    """
    rngs = nnx.Rngs(key)
    backbone = lookup(BACKBONES, name, "backbone")(rngs=rngs, output_stride=output_stride)
    if pretrained is not None:
        weights.load(backbone, pretrained)
    return Segmenter(backbone, outputs, width=width, rngs=rngs)


def lean(name: str, output_stride: int) -> float:
    """Which of its stride pixels a cell of a backbone's last map looks at (``Backbone.lean``)."""
    make = lookup(BACKBONES, name, "backbone")
    backbone = nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0), output_stride=output_stride))
    return float(backbone.lean)
