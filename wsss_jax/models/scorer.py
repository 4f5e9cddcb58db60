"""Any Flax module with ``features`` and ``head`` as what explanations need, its weights apart.

Weights stay arguments of what is compiled: as constants they would be folded for minutes.
"""

from typing import Any, Protocol, TypeGuard, runtime_checkable

from flax import nnx
from jaxtyping import Array

from wsss_jax.types import Attentive, Scorer, Structure, Variables


@runtime_checkable
class HasFeatures(Protocol):
    """A classifier in two halves."""

    def features(self, images: Array) -> Array:
        """Images (b,H,W,3) to a map (b,h,w,k)."""
        ...

    def head(self, features: Array) -> Array:
        """The map to class logits (b,c)."""
        ...


@runtime_checkable
class HasClassMaps(Protocol):
    """A classifier whose head is average pooling and a linear layer."""

    def class_maps(self, features: Array) -> Array:
        """The map (b,h,w,k) to class logits of every cell (b,h,w,c)."""
        ...


@runtime_checkable
class HasAttention(Protocol):
    """A transformer that is read at its class token."""

    def attentive(self) -> Attentive:
        """What attention explanations need."""
        ...

    def last_norm(self, images: Array) -> Scorer:
        """Features and head at the last block, for these very images."""
        ...


def is_module(model: object) -> TypeGuard[nnx.Module]:
    """Whether this is a Flax module."""
    return isinstance(model, nnx.Module)


def taken_apart(model: nnx.Module) -> tuple[Structure, Variables]:
    """Structure (hashable) and arrays of a module."""
    return nnx.split(model)


def put_together(structure: Structure, arrays: Variables) -> Any:
    """The module again, inside a compiled function too."""
    return nnx.merge(structure, arrays)


def in_training(model: nnx.Module) -> list[str]:
    """Layers of Flax that would drop values or average over the batch, as while training."""
    found = []
    for path, part in nnx.iter_modules(model):
        name = ".".join(map(str, path)) or type(part).__name__
        if isinstance(part, nnx.Dropout) and part.rate > 0 and not part.deterministic:
            found.append(name)
        if isinstance(part, nnx.BatchNorm) and not part.use_running_average:
            found.append(name)
    return found


def scorer_of(module: HasFeatures | HasAttention, images: Array) -> Scorer:
    """Features and head of a module; of a class token those of these very images."""
    if isinstance(module, HasFeatures):
        maps = module.class_maps if isinstance(module, HasClassMaps) else None
        return Scorer(module.features, module.head, maps)
    return module.last_norm(images)


def logits_of(module: Any, images: Array) -> Array:
    """Class scores of a module."""
    if isinstance(module, HasFeatures):
        return module.head(module.features(images))
    return module(images)
