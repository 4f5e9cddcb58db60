"""What every learning problem of image labels offers, so that stages need not know which it is."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from jaxtyping import Array, PyTree

from wsss_jax.train.state import Network, Weights
from wsss_jax.types import System, Variables


class Explained(NamedTuple):
    """The network of a trained system that is asked for class maps.

    structure: number of classes to its structure. weights: the system's state to the (params,
    stats) of this network. scorer: (network, params, stats) to a function that, given which
    pixels are real, gives a ``types.Scorer`` (a ``types.Attentive`` where ``attentive``). lean:
    see ``types.Backbone``. own: methods of explanation that only this network has, by name:
    (network, weights, images, inside, labels) to raw maps (b,h,w,c).
    """

    structure: Callable[[int], Network]
    weights: Callable[[PyTree], Weights]
    scorer: Callable[[Network, Variables, Variables], Callable[[Array], Any]]
    lean: float
    attentive: bool = False
    own: Mapping[str, Callable[..., Array]] = MappingProxyType({})


class Entry(NamedTuple):
    """One system of the table.

    settings: its class of settings. make: (settings, classes=, steps=) to a ``types.System``.
    template: (settings, classes) to the shape of its state. explained: settings to ``Explained``.
    boxes: whether it learns from boxes besides labels.
    """

    settings: type
    make: Callable[..., System]
    template: Callable[..., PyTree]
    explained: Callable[..., Explained]
    boxes: bool = False
