"""Which pretrained networks serve a run on somebody's own photographs, and for what.

Convolutional networks become classifiers. Features are those of the first convolutional network,
for the combiner's linear probe, and then those of a transformer (DINOv2), along which it smooths:
``features_of`` decides which, and their order.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from wsss_jax.errors import UserError
from wsss_jax.models import build, recognise
from wsss_jax.weights import sources
from wsss_jax.weights.known_weights import AUTO, SMOOTHING, WEIGHTS

MOST = 2
"""Convolutional networks that ``auto`` takes, of those that are at hand."""


class Network(NamedTuple):
    """Pretrained weights and the network that they are for.

    name: of the folders that are made with it. convolutional: whether it can be trained as a
    classifier here; a transformer gives features alone. taps: its maps but the finest, and of a
    transformer the last one. stride:
    pixels per cell of its features.
    """

    name: str
    path: Path
    backbone: str
    convolutional: bool
    taps: tuple[int, ...]
    stride: int = 8


class System(NamedTuple):
    """One of the two systems: its network, stride and label smoothing, and how it differs."""

    name: str
    network: Network
    stride: int
    smoothing: float
    about: str


def systems_of(networks: Sequence[Network]) -> tuple[System, System]:
    """Two systems of different kinds: of two networks, or of one at another stride and loss."""
    able = [network for network in networks if network.convolutional]
    first = able[0]
    fine = _stride(first)
    if len(able) > 1:
        second, stride = able[1], _stride(able[1])
        return (
            System(first.name, first, fine, 0.0, f"stride {fine}"),
            System(second.name, second, stride, 0.1, f"stride {stride}, smoothed labels"),
        )
    own = build.stride(first.backbone)
    coarse = own if own != fine else 2 * fine
    return (
        System(first.name, first, fine, 0.0, f"stride {fine}"),
        System(
            f"{first.name}_coarse",
            first,
            coarse,
            0.1,
            f"the same network, as only one is at hand: stride {coarse}, smoothed labels",
        ),
    )


def found_networks(weights: Sequence[str]) -> tuple[Network, ...]:
    """The networks of these weights.

    ``auto`` means at most MOST convolutional ones of those that are at hand, and a transformer
    where no other is given. Raises MissingFileError where weights are not there, UserError without
    a convolutional one.
    """
    found: dict[Path, Network] = {}
    for given in weights:
        held = _at_hand(AUTO)[:MOST] if given == "auto" else []
        for one in held or [given]:  # "auto" itself: the error that names what to install
            _add(one, found)
    if "auto" in weights and all(network.convolutional for network in found.values()):
        for one in _at_hand(SMOOTHING)[:1]:
            _add(one, found)
    networks = tuple(found.values())
    if not any(network.convolutional for network in networks):
        names = ", ".join(network.backbone for network in networks)
        raise UserError(f"{names}: a classifier is trained from a convolutional network; add one")
    return networks


def features_of(networks: Sequence[Network]) -> tuple[Network, ...]:
    """Whose features the combiner has: the first convolutional network, then the first transformer.

    The linear probe reads the first store, and smoothing goes along the last. A second
    convolutional network gained on one data set and cost on another (benchmarks/ABLATION.md).
    """
    return tuple(
        next(network for network in networks if network.convolutional is kind)
        for kind in (True, False)
        if any(network.convolutional is kind for network in networks)
    )


def _stride(network: Network) -> int:
    return 8 if network.backbone == "tiny" else 16


def _at_hand(names: Sequence[str]) -> list[str]:
    return [name for name in names if sources.at_hand(WEIGHTS[name]) is not None]


def _add(given: str, found: dict[Path, Network]) -> None:
    """Put the network of these weights behind those that were found."""
    known = recognise.known(given)
    strides = build.of_shapes(known.network).strides
    name = known.network if known.weights is None else known.weights
    names = [network.name for network in found.values()]
    name = f"{name}_{len(names)}" if name in names else name
    safe = "".join(letter if letter.isalnum() or letter == "_" else "_" for letter in name)
    convolutional = strides[0] != strides[-1]
    taps = tuple(range(1, len(strides))) if convolutional else (len(strides) - 1,)
    stride = 8 if convolutional else strides[-1]
    found[known.path] = Network(safe, known.path, known.network, convolutional, taps, stride)
