"""Whole networks from their names: what systems ask for, and the conversion of weight files."""

from pathlib import Path
from typing import Any

from flax import nnx

from wsss_jax.config import lookup
from wsss_jax.errors import UserError
from wsss_jax.models import BACKBONES, import_names, weights
from wsss_jax.models.heads import Classifier
from wsss_jax.models.import_files import read_arrays


def backbone(
    name: str,
    *,
    rngs: nnx.Rngs,
    output_stride: int | None,
    pretrained: Path | None = None,
    **options: Any,
) -> Any:
    """The named backbone from a random start, or filled from a weight file of any layout.

    output_stride: None takes the backbone's own. options: of the backbone's own (``grid``,
    ``remat``, ``norm``). Raises ValueError for an
    unknown name or option, or a file that does not fit (naming every misfit).
    """
    if pretrained is None:
        return _made(name, rngs=rngs, output_stride=output_stride, **options)
    module = _of_shapes(name, output_stride=output_stride, **options)
    weights.load(module, pretrained)
    return module


def classifier(
    name: str,
    classes: int,
    *,
    key: Any,
    output_stride: int | None,
    pretrained: Path | None = None,
    dropout: float = 0.0,
    **options: Any,
) -> Classifier:
    """A classifier over ``classes`` classes on the named backbone.

    key: of the random start. pretrained: weight file that fills the backbone. options: of the
    backbone's own. Raises ValueError as ``backbone``.
    """
    rngs = nnx.Rngs(key)
    body = backbone(name, rngs=rngs, output_stride=output_stride, pretrained=pretrained, **options)
    return Classifier(body, classes, rngs=rngs, dropout=dropout)


def lean(name: str, output_stride: int) -> float:
    """Which of its stride pixels a cell of a backbone's last map looks at (``Backbone.lean``)."""
    return float(_of_shapes(name, output_stride=output_stride).lean)


def stride(name: str) -> int:
    """Pixels per cell of a backbone's last map, where none is asked for."""
    return _of_shapes(name).strides[-1]


def convert(source: Path, target: Path, name: str | None = None) -> str:
    """Write a weight file of any layout in our own; returns the name of the backbone it fits.

    name: the backbone; None takes the first in BACKBONES that the file fits exactly. Raises
    ValueError, of one named backbone with every misfit, else with the nearest one's.
    """
    if name is None:
        name = fitting(source)
    module = _of_shapes(name)
    weights.load(module, source)
    weights.save(module, target)
    return name


def fitting(source: Path) -> str:
    """The first backbone in BACKBONES that a weight file fits exactly, else ValueError."""
    if source.suffix == ".params":
        return "resnet38d"  # the only one that was published so
    arrays, misfits = read_arrays(source), {}
    for name in BACKBONES:
        module = _of_shapes(name)
        try:
            plain, table = weights.meaning(module, arrays, called=str(source))
        except ValueError:
            continue  # never published: only its own files fit, and this is none
        found = import_names.converted(import_names.values_of(module), plain, table)[1]
        if not found:
            return name
        misfits[name] = found
    nearest = min(misfits, key=lambda name: len(misfits[name]))
    lines = misfits[nearest]
    raise UserError(
        f"{source} fits no backbone; nearest is {nearest}, with {len(lines)} misfits:\n  "
        + "\n  ".join(lines[:20])
    )


def _of_shapes(name: str, **options: Any) -> Any:
    """A backbone with shapes in place of values; a random start takes ten seconds to compile."""
    return nnx.eval_shape(lambda: _made(name, rngs=nnx.Rngs(0), **options))


def _made(name: str, **options: Any) -> Any:
    make = lookup(BACKBONES, name, "backbone")
    if options.get("output_stride", 0) is None:
        del options["output_stride"]
    try:
        return make(**options)
    except TypeError as problem:
        if "unexpected keyword argument" not in str(problem):
            raise
        raise UserError(f"{name} lacks an option: {problem}; leave it at its default") from problem
