"""Whole networks from their names: what systems ask for, with their weights."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from jaxtyping import PRNGKeyArray

from wsss_jax.backbones import BACKBONES
from wsss_jax.config import lookup
from wsss_jax.errors import UserError
from wsss_jax.models.heads import Classifier
from wsss_jax.weights import loading as weights
from wsss_jax.weights import normalisation


class _OneKey(nnx.Rngs):
    """The same key for every value: of shapes nothing is drawn.

    Counting keys while shapes are traced takes ten seconds of processor time for a network of two
    thousand values, this under one.
    """

    def params(self) -> PRNGKeyArray:
        """The key."""
        return jax.random.key(0)


def backbone(
    name: str,
    *,
    rngs: nnx.Rngs,
    output_stride: int | None,
    pretrained: Path | None = None,
    normalise: str | None = None,
    **options: Any,
) -> Any:
    """The named backbone from a random start, or filled from weights of any layout.

    output_stride: None takes the backbone's own. pretrained: what ``sources.resolve`` takes.
    normalise: of its images, a name of NORMALISATIONS or six numbers; None for the network's own.
    options: of the backbone's own (``grid``, ``remat``, ``norm``). Raises UserError for an unknown
    name or option, weights that do not fit (naming every misfit), and weights that want another
    normalisation than the network's own where ``normalise`` is None: a network that is built again
    from its settings alone, to explain with its checkpoint, would not have it.
    """
    if pretrained is None:
        module = made(name, rngs=rngs, output_stride=output_stride, **options)
        if normalise is not None:
            weights.normalised(module, normalisation.parsed(normalise))
        return module
    module = of_shapes(name, output_stride=output_stride, **options)
    before = weights.own(module)
    weights.load(module, pretrained, normalise=normalise)
    after = normalisation.named(weights.own(module))
    if normalise is None and after != normalisation.named(before):
        raise UserError(f"{pretrained} wants images normalised by {after}: say normalise={after!r}")
    return module


def classifier(
    name: str,
    classes: int,
    *,
    key: PRNGKeyArray,
    output_stride: int | None,
    dropout: float = 0.0,
    **options: Any,
) -> Classifier:
    """A classifier over ``classes`` classes on the named backbone; the rest as for ``backbone``."""
    whole = partial(Classifier, classes=classes, dropout=dropout)
    return on_backbone(name, whole, key=key, output_stride=output_stride, **options)


def on_backbone(
    name: str,
    whole: Callable[..., Any],
    *,
    key: PRNGKeyArray,
    output_stride: int | None,
    **options: Any,
) -> Any:
    """A network on the named backbone: ``whole(backbone, rngs=…)``.

    key: of the random start. The rest, and errors, as for ``backbone``.
    """
    rngs = nnx.Rngs(key)
    body = backbone(name, rngs=rngs, output_stride=output_stride, **options)
    return whole(body, rngs=rngs)


def lean(name: str, output_stride: int) -> float:
    """Which of its stride pixels a cell of a backbone's last map looks at (``Backbone.lean``)."""
    return float(of_shapes(name, output_stride=output_stride).lean)


def stride(name: str) -> int:
    """Pixels per cell of a backbone's last map, where none is asked for."""
    return of_shapes(name).strides[-1]


def of_shapes(name: str, **options: Any) -> Any:
    """A backbone with shapes in place of values; a random start takes ten seconds to compile."""
    return nnx.eval_shape(lambda: made(name, rngs=_OneKey(0), **options))


def made(name: str, **options: Any) -> Any:
    """A backbone of BACKBONES from a random start; UserError for an option that it lacks."""
    make = lookup(BACKBONES, name, "backbone")
    if options.get("output_stride", 0) is None:
        del options["output_stride"]
    try:
        return make(**options)
    except TypeError as problem:
        if "unexpected keyword argument" not in str(problem):
            raise
        raise UserError(f"{name} lacks an option: {problem}; leave it at its default") from problem
