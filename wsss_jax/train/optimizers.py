"""Optimisers with per-group learning rates and the schedules of the field.

Groups follow the reference codes (PSA, IRN, Puzzle-CAM, P-NOC): new layers learn ten times faster
than pretrained ones, biases twice as fast and without weight decay.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import jax
import optax

from wsss_jax.config import lookup


@dataclass(frozen=True)
class Optim:
    """How parameters are updated.

    Attributes:
        name: sgd or adamw.
        learning_rate: of pretrained weights, at its peak.
        new_layers: factor of the rate for layers without pretrained weights.
        biases: factor of the rate for biases, which never decay.
        momentum: of SGD. The reference codes of the field run with practically none, because
            they hand the weight decay over in its place; 0.9 wants a ten times smaller rate.
        nesterov: whether that momentum looks ahead.
        weight_decay: of weights, per step and unit of learning rate.
        schedule: poly is (1 - t/T) ** power; cosine; constant.
        power: of the poly schedule.
        warm_up: steps of linear rise before the schedule.
        clip: largest gradient norm, 0 for no limit.
    """

    name: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = 0.01
    new_layers: float = 10.0
    biases: float = 2.0
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 1e-4
    schedule: Literal["poly", "cosine", "constant"] = "poly"
    power: float = 0.9
    warm_up: int = 0
    clip: float = 0.0


def schedule(optim: Optim, steps: int) -> optax.Schedule:
    """Learning rate by step, from the peak at the end of the warm-up to zero at ``steps``."""
    rest = max(steps - optim.warm_up, 1)
    decay = lookup(_SCHEDULES, optim.schedule, "schedule")(optim, rest)
    if not optim.warm_up:
        return decay
    rise = optax.linear_schedule(0.0, optim.learning_rate, optim.warm_up)
    return optax.join_schedules([rise, decay], [optim.warm_up])


def optimizer(
    optim: Optim, steps: int, is_new: Callable[[str], bool]
) -> optax.GradientTransformation:
    """The gradient transformation for ``steps`` updates.

    is_new: from a parameter's path ("backbone/stem/kernel") to whether it starts untrained.
    """
    groups: dict[Hashable, optax.GradientTransformation] = {
        f"{age}_{part}": _one_group(optim, steps, new * bias, decays=part == "weights")
        for age, new in (("pretrained", 1.0), ("new", optim.new_layers))
        for part, bias in (("weights", 1.0), ("biases", optim.biases))
    }

    def label(path: Any, leaf: Any) -> str:
        name = path_name(path)
        age = "new" if is_new(name) else "pretrained"
        return f"{age}_{'weights' if leaf.ndim > 1 else 'biases'}"

    grouped = optax.multi_transform(
        groups, lambda params: jax.tree_util.tree_map_with_path(label, params)
    )
    if not optim.clip:
        return grouped
    return optax.chain(optax.clip_by_global_norm(optim.clip), grouped)


def path_name(path: Any) -> str:
    """A pytree path as ``backbone/stem/kernel``."""
    parts = [
        str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", "")))) for key in path
    ]
    return "/".join(part for part in parts if part and part != "value")


def _one_group(
    optim: Optim, steps: int, factor: float, *, decays: bool
) -> optax.GradientTransformation:
    decay = optim.weight_decay if decays else 0.0
    rate = schedule(optim, steps)
    if optim.name == "adamw":
        return optax.adamw(lambda step: factor * rate(step), weight_decay=decay)
    return optax.chain(
        optax.add_decayed_weights(decay),
        optax.sgd(
            lambda step: factor * rate(step),
            momentum=optim.momentum or None,
            nesterov=optim.nesterov,
        ),
    )


_SCHEDULES: MappingProxyType[str, Callable[[Optim, int], optax.Schedule]] = MappingProxyType(
    {
        "poly": lambda o, n: optax.polynomial_schedule(o.learning_rate, 0.0, o.power, n),
        "cosine": lambda o, n: optax.cosine_decay_schedule(o.learning_rate, n),
        "constant": lambda o, _: optax.constant_schedule(o.learning_rate),
    }
)
