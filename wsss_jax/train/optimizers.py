"""Optimisers with per-group learning rates and the schedules of the field.

Groups follow the reference codes (PSA, IRN, Puzzle-CAM, P-NOC): new layers learn ten times faster
than pretrained ones, biases twice as fast and without weight decay. Frozen stages, clipping, the
average of several batches and the moving average of the parameters are all wrapped around them, so
that whoever steps the optimizer knows nothing of it.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, NamedTuple, TypeGuard, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PyTree

from wsss_jax.config import lookup
from wsss_jax.errors import UserError
from wsss_jax.types import Leaf

T = TypeVar("T")

KeyPath = tuple[Hashable, ...]
"""Where a leaf lies in a tree, as jax.tree_util tells it."""


@dataclass(frozen=True)
class Optim:
    """How parameters are updated.

    Attributes:
        name: sgd or adamw.
        learning_rate: peak rate of pretrained layers.
        new_layers: factor of the rate for layers without pretrained weights.
        biases: factor of the rate for biases, which never decay. Scales of norms, class tokens
            and all else of one axis learn like weights; they decay under sgd, as the reference
            codes have it, and not under adamw.
        momentum: of SGD, unless the next setting replaces it.
        momentum_is_weight_decay: take the weight decay as the momentum too, in place of the setting
            above. The field's reference codes do this by mistake, so they train almost without
            momentum and at high rates such as 0.1. With a momentum of 0.9 divide their rate by ten.
        nesterov: Nesterov momentum (Puzzle-CAM uses it).
        weight_decay: of weights, per step and unit of learning rate.
        schedule: poly is (1 - t/T) ** power; cosine; constant.
        power: of the poly schedule.
        warm_up: updates over which the rate first rises linearly.
        clip: largest gradient norm, 0 for no limit.
        accumulate: batches whose gradients are averaged into one update. (Puzzle-CAM and P-NOC
            add them up instead: give their rate times this number to do the same.)
        ema: decay of the moving average of the parameters that explanations use, 0 for none.
        freeze: names of stages that are not trained (stem, layer1 …).
    """

    name: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = 0.01
    new_layers: float = 10.0
    biases: float = 2.0
    momentum: float = 0.9
    momentum_is_weight_decay: bool = False
    nesterov: bool = False
    weight_decay: float = 1e-4
    schedule: Literal["poly", "cosine", "constant"] = "poly"
    power: float = 0.9
    warm_up: int = 0
    clip: float = 0.0
    accumulate: int = 1
    ema: float = 0.0
    freeze: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.accumulate < 1:
            raise UserError(f"accumulate is {self.accumulate}, wanted at least one batch")
        if not 0 <= self.ema < 1:
            raise UserError(f"ema is {self.ema}, wanted a decay in [0, 1), 0 for none")
        if self.momentum_is_weight_decay and self.name != "sgd":
            raise UserError(f"momentum_is_weight_decay is of sgd only, not of {self.name}")


def schedule(optim: Optim, steps: int) -> optax.Schedule:
    """Learning rate by step, from the peak at the end of the warm-up to zero at ``steps``."""
    rest = max(steps - optim.warm_up, 1)
    decay = lookup(_SCHEDULES, optim.schedule, "schedule")(optim, rest)
    if not optim.warm_up:
        return decay
    rise = optax.linear_schedule(0.0, optim.learning_rate, optim.warm_up)
    return optax.join_schedules([rise, decay], [optim.warm_up])


def outside_backbone(*, pretrained: bool) -> Callable[[str], bool]:
    """Which parameters start untrained: all but the backbone's, where that is pretrained.

    From scratch none counts as new: all of them learn at one rate.
    """
    return lambda name: pretrained and "backbone" not in name.split("/")


def rate(optim: Optim, steps: int) -> Callable[[int], float]:
    """The learning rate at each of ``steps`` batches, of pretrained weights, as a number."""
    planned = schedule(optim, max(steps // optim.accumulate, 1))

    def at(step: int) -> float:
        with jax.numpy_dtype_promotion("standard"):  # optax's schedules mix integers and floats
            return np.asarray(planned(jnp.asarray(step // optim.accumulate, jnp.int32))).item()

    return at


def optimizer(
    optim: Optim, steps: int, is_new: Callable[[str], bool]
) -> optax.GradientTransformation:
    """The gradient transformation for ``steps`` batches, an update every ``accumulate`` of them.

    is_new: from a parameter's path ("backbone/stem/kernel") to whether it starts untrained.
    Starting it raises ValueError for a name in ``freeze`` that is no stage.
    """
    updates = max(steps // optim.accumulate, 1)
    parts = (
        ("weights", 1.0, True),
        ("scales", 1.0, optim.name == "sgd"),
        ("biases", optim.biases, False),
    )
    groups: dict[Hashable, optax.GradientTransformation] = {
        f"{age}_{part}": _one_group(optim, updates, new * factor, decays=decays)
        for age, new in (("pretrained", 1.0), ("new", optim.new_layers))
        for part, factor, decays in parts
    }
    groups["frozen"] = optax.set_to_zero()

    def label(path: KeyPath, leaf: Leaf) -> str:
        name = path_name(path)
        if _is_frozen(name, optim.freeze):
            return "frozen"
        age = "new" if is_new(name) else "pretrained"
        return f"{age}_{_part(name, leaf.ndim)}"

    def labels(params: PyTree) -> PyTree:
        _check_names(params, optim.freeze)
        return jax.tree_util.tree_map_with_path(label, params)

    whole: optax.GradientTransformation = optax.multi_transform(groups, labels)
    if optim.clip:
        whole = optax.chain(_without(optim.freeze), optax.clip_by_global_norm(optim.clip), whole)
    if optim.ema:
        whole = _averaging(whole, optim.ema)
    if optim.accumulate > 1:
        return optax.MultiSteps(whole, optim.accumulate).gradient_transformation()
    return whole


class MovingAverage(NamedTuple):
    """State of the wrapper that keeps a moving average of the parameters."""

    average: PyTree
    count: Leaf
    inner: PyTree


def averaged(params: PyTree, opt_state: PyTree) -> PyTree:
    """The moving average of the parameters where the optimizer keeps one, else they themselves."""
    leaves = jax.tree.leaves(opt_state, is_leaf=_is_average)
    found = [leaf.average for leaf in leaves if _is_average(leaf)]
    return found[0] if found else params


def held(params: T, freeze: tuple[str, ...]) -> T:
    """The parameters, those of frozen stages as constants: no backward pass is run for them.

    Not needed for them to stay as they are (the optimizer sees to that), but it saves time.
    """

    def hold(path: KeyPath, leaf: Leaf) -> Array:
        return jax.lax.stop_gradient(leaf) if _is_frozen(path_name(path), freeze) else leaf

    return jax.tree_util.tree_map_with_path(hold, params) if freeze else params


def path_name(path: KeyPath) -> str:
    """A pytree path as ``backbone/stem/kernel``."""
    parts = [
        str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", "")))) for key in path
    ]
    return "/".join(part for part in parts if part and part != "value")


def _part(name: str, axes: int) -> str:
    if axes > 1:
        return "weights"
    return "biases" if name.split("/")[-1] == "bias" else "scales"


def _one_group(
    optim: Optim, updates: int, factor: float, *, decays: bool
) -> optax.GradientTransformation:
    decay = optim.weight_decay if decays else 0.0
    rate = schedule(optim, updates)
    if optim.name == "adamw":
        return optax.adamw(lambda step: factor * rate(step), weight_decay=decay)
    momentum = optim.weight_decay if optim.momentum_is_weight_decay else optim.momentum
    return optax.chain(
        optax.add_decayed_weights(decay),
        optax.sgd(
            lambda step: factor * rate(step), momentum=momentum or None, nesterov=optim.nesterov
        ),
    )


def _averaging(inner: optax.GradientTransformation, decay: float) -> optax.GradientTransformation:
    """The same updates, and a moving average of the parameters that they lead to.

    The first updates weigh more, min(decay, (1 + t) / (10 + t)) as in TensorFlow's
    ExponentialMovingAverage, so that the random start is soon forgotten.
    """

    def init(params: PyTree) -> MovingAverage:
        # A copy: parameters are donated to the step, and no buffer may be donated twice.
        start = jax.tree.map(jnp.copy, params)
        return MovingAverage(start, jnp.zeros((), jnp.int32), inner.init(params))

    def update(
        updates: PyTree, state: PyTree, params: PyTree = None
    ) -> tuple[PyTree, MovingAverage]:
        updates, inside = inner.update(updates, state.inner, params)
        t = state.count.astype(jnp.float32)
        share = 1 - jnp.minimum(decay, (1 + t) / (10 + t))

        def moved(old: Array, param: Array, step: Array) -> Array:
            return old + share.astype(old.dtype) * (param + step - old)

        average = jax.tree.map(moved, state.average, params, updates)
        return updates, MovingAverage(average, state.count + 1, inside)

    return optax.GradientTransformation(init, update)


def _is_average(leaf: object) -> TypeGuard[MovingAverage]:
    return isinstance(leaf, MovingAverage)


def _without(freeze: tuple[str, ...]) -> optax.GradientTransformation:
    """Gradients of frozen stages as zeros, so that they do not count in the norm."""

    def is_frozen(params: PyTree) -> PyTree:
        return jax.tree_util.tree_map_with_path(
            lambda path, _: _is_frozen(path_name(path), freeze), params
        )

    return optax.masked(optax.set_to_zero(), is_frozen)


def _is_frozen(name: str, freeze: tuple[str, ...]) -> bool:
    return any(_starts_with(name, stage) for stage in freeze)


def _starts_with(name: str, stage: str) -> bool:
    """Whether a path lies in a stage, which is named from the top or from the backbone on."""
    return f"{name}/".startswith(f"{stage}/") or f"/backbone/{stage}/" in f"/{name}/"


def _check_names(params: PyTree, freeze: tuple[str, ...]) -> None:
    paths = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    for stage in freeze:
        if not any(_starts_with(path, stage) for path in paths):
            known = sorted({path.split("backbone/")[-1].split("/")[0] for path in paths})
            raise UserError(f"no stage {stage!r} to freeze (known: {', '.join(known)})")


_SCHEDULES: MappingProxyType[str, Callable[[Optim, int], optax.Schedule]] = MappingProxyType(
    {
        "poly": lambda o, n: optax.polynomial_schedule(o.learning_rate, 0.0, o.power, n),
        "cosine": lambda o, n: optax.cosine_decay_schedule(o.learning_rate, n),
        "constant": lambda o, _: optax.constant_schedule(o.learning_rate),
    }
)
