"""What the embedded scenes are made of: creatures, the stone that distracts, and grounds.

A creature is an outline and a head pattern, both functions of its own coordinates; a ground is a
texture and a usual hue. Not here: where they stand and how they are lit (``synthetic``).
"""

from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from jaxtyping import Float

Plane = Float[np.ndarray, "h w"]


@dataclass(frozen=True)
class Creature:
    """One class: the outline of its body, the pattern of its head, the ground it prefers.

    body: (u, v) to a function below 0 inside; the body is about 2 long, its head is at u = 1.
    pattern: (u, v) in head radii to +1 / -1; None where there is no head. colours: the pattern's
    two colours as (hue, saturation, value); two classes share each pair, so that the mean colour
    never tells the class.
    """

    body: Callable[[Plane, Plane], Plane]
    pattern: Callable[[Plane, Plane], Plane] | None
    colours: tuple[tuple[float, float, float], tuple[float, float, float]]
    ground: str


def _ellipse(u: Plane, v: Plane) -> Plane:
    return np.sqrt(u**2 + (v / 0.58) ** 2) - 1


def _swimmer(u: Plane, v: Plane) -> Plane:
    trunk = np.sqrt(((u - 0.15) / 0.85) ** 2 + (v / 0.42) ** 2) - 1
    tail = np.maximum(np.abs(v) + 0.9 * (u + 0.45), -1.1 - u)
    return np.minimum(trunk, tail)


def _diamond(u: Plane, v: Plane) -> Plane:
    return np.abs(u) + np.abs(v) / 0.8 - 1


def _shell(u: Plane, v: Plane) -> Plane:
    ball = np.sqrt((u + 0.2) ** 2 + (v + 0.1) ** 2) - 0.7
    foot = np.maximum(np.abs(u) - 1.1, np.abs(v - 0.55) - 0.17)
    return np.minimum(ball, foot)


def _dome(u: Plane, v: Plane) -> Plane:
    return np.maximum(np.hypot(u, v - 0.35) - 1, v - 0.35)


def _pentagram(u: Plane, v: Plane) -> Plane:
    return np.hypot(u, v) - (0.68 + 0.3 * np.cos(5 * np.arctan2(v, u)))


def _block(u: Plane, v: Plane) -> Plane:
    return (np.abs(u) ** 4 + (np.abs(v) / 0.7) ** 4) ** 0.25 - 1


def _stripes(u: Plane, v: Plane) -> Plane:
    return np.sign(np.sin(5.5 * u + 0.8))


def _checks(u: Plane, v: Plane) -> Plane:
    return np.sign(np.sin(4.2 * u) * np.sin(4.2 * v))


def _dots(u: Plane, v: Plane) -> Plane:
    return np.sign(np.cos(6.5 * u) + np.cos(6.5 * v) - 0.4)


def _rings(u: Plane, v: Plane) -> Plane:
    return np.sign(np.cos(7.5 * np.hypot(u, v)))


def _cross(u: Plane, v: Plane) -> Plane:
    return np.where((np.abs(u) < 0.26) | (np.abs(v) < 0.26), 1.0, -1.0)


def _petals(u: Plane, v: Plane) -> Plane:
    return np.sign(np.sin(3 * np.arctan2(v, u)))


_YELLOW, _BLACK, _WHITE = (0.14, 0.95, 0.98), (0.0, 0.0, 0.05), (0.0, 0.0, 0.98)
_RED, _GREEN, _CYAN = (0.98, 0.9, 0.85), (0.36, 0.9, 0.7), (0.5, 0.95, 0.9)
_BLUE, _MAGENTA = (0.64, 0.9, 0.8), (0.84, 0.9, 0.85)

CREATURES = MappingProxyType(
    {
        "beetle": Creature(_ellipse, _stripes, (_YELLOW, _BLACK), "meadow"),
        "fish": Creature(_swimmer, _checks, (_RED, _WHITE), "water"),
        "kite": Creature(_diamond, _dots, (_MAGENTA, _BLACK), "tiles"),
        "snail": Creature(_shell, _rings, (_BLUE, _WHITE), "sand"),
        "tortoise": Creature(_dome, _cross, (_GREEN, _WHITE), "meadow"),
        "star": Creature(_pentagram, _petals, (_CYAN, _WHITE), "water"),
    }
)
"""What tells each class from the others."""

STONE = Creature(_block, None, (_WHITE, _WHITE), "sand")
"""The distractor: a body like any other, without a head, background in the mask."""


def blotches(rng: np.random.Generator, side: int, cells: int, stretch: float = 1) -> Plane:
    """Smooth noise of unit deviation with about ``cells`` blotches per side."""
    rows, columns = max(2, round(cells * stretch)), max(2, round(cells / stretch))
    grid = rng.standard_normal((rows, columns)).astype(np.float32)
    return 1.4 * _interpolation(side, rows) @ grid @ _interpolation(side, columns).T


def _interpolation(side: int, cells: int) -> Plane:
    position = np.linspace(0, cells - 1, side)[:, None]
    return np.clip(1 - np.abs(position - np.arange(cells)), 0, 1).astype(np.float32)


def _meadow(rng: np.random.Generator, side: int) -> Plane:
    return blotches(rng, side, side // 5, 0.35) + 0.5 * blotches(rng, side, 5)


def _water(rng: np.random.Generator, side: int) -> Plane:
    height = np.linspace(0, 1, side, dtype=np.float32)[:, None]
    return 1.2 * np.sin(rng.uniform(45, 75) * height + 2 * blotches(rng, side, 6))


def _sand(rng: np.random.Generator, side: int) -> Plane:
    return blotches(rng, side, side // 2) + 0.6 * blotches(rng, side, 4)


def _tiles(rng: np.random.Generator, side: int) -> Plane:
    y, x = np.mgrid[:side, :side].astype(np.float32) / side
    count = rng.uniform(5, 9)
    joint = ((x * count) % 1 < 0.14) | ((y * count) % 1 < 0.14)
    return np.where(joint, -2.0, 0.5) + 0.5 * blotches(rng, side, 10)


GROUNDS = MappingProxyType(
    {
        "meadow": (_meadow, 0.3),
        "water": (_water, 0.57),
        "sand": (_sand, 0.11),
        "tiles": (_tiles, 0.02),
    }
)
"""Name to (texture, usual hue)."""
