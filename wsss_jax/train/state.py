"""The boundary between Flax modules and pure functions, and the state that training carries.

A module is split once into its graph, its parameters and the rest; from there on everything is
plain ``jax.jit`` over pytrees. This is the only file outside models/ that knows Flax.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, PyTree

from wsss_jax.train import optimizers
from wsss_jax.types import Leaf, Structure, Variables

S = TypeVar("S")
"""State of a system: a tree of arrays with training states in it."""

LossOf = Callable[[PyTree], tuple[Array, dict[str, Array]]]
"""From parameters to the loss, and what to watch besides it."""

Weights = tuple[Variables, Variables]
"""Parameters of a network, and the rest of what it holds."""


class Network(NamedTuple):
    """A module taken apart: ``bind`` puts it together again inside a pure function."""

    graph: Structure
    params: Variables
    stats: Variables

    def bind(self, params: Variables, stats: Variables) -> Any:
        """The module with these parameters; a fresh copy, so that gradients and BatchNorm work."""
        return nnx.merge(self.graph, params, stats, copy=True)


def functional(module: nnx.Module) -> Network:
    """Split a module into graph, parameters (nnx.Param) and everything else it holds."""
    graph, params, stats = nnx.split(module, nnx.Param, ...)
    return Network(graph, params, stats)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Everything that training one network changes.

    step counts batches tried; skipped those dropped for non-finite values, in_a_row the latest
    uninterrupted run of them. axis: of the devices over which each step averages its gradients,
    where every device has a loss of its own (``parallel.pmapped`` sets it).
    """

    params: PyTree
    stats: PyTree
    opt_state: PyTree
    step: Leaf
    skipped: Leaf
    in_a_row: Leaf
    axis: str | None = field(default=None, metadata={"static": True})

    @property
    def averaged(self) -> PyTree:
        """The parameters to explain with: their moving average if one is kept (``Optim.ema``)."""
        return optimizers.averaged(self.params, self.opt_state)

    @property
    def counts(self) -> dict[str, Leaf]:
        """What the training loop watches: steps that were not finite."""
        return {"skipped": self.skipped, "bad_in_a_row": self.in_a_row}

    def updated(
        self, optimizer: optax.GradientTransformation, loss: Float[Array, ""], grads: PyTree
    ) -> "TrainState":
        """The state one step further; unchanged but for the counts if anything is not finite."""
        if self.axis is not None:
            loss, grads = jax.lax.pmean((loss, grads), self.axis)
        finite = jnp.isfinite(loss) & jnp.isfinite(optax.tree.norm(grads))
        with jax.numpy_dtype_promotion("standard"):  # optax's Adam raises a float to an int
            updates, opt_state = optimizer.update(grads, self.opt_state, self.params)
        params = optax.apply_updates(self.params, updates)

        def chosen(new: PyTree, old: PyTree) -> PyTree:
            return jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)

        bad = jnp.where(finite, 0, 1).astype(jnp.int32)
        return replace(
            self,
            params=chosen(params, self.params),
            opt_state=chosen(opt_state, self.opt_state),
            step=self.step + 1,
            skipped=self.skipped + bad,
            in_a_row=(self.in_a_row + 1) * bad,
        )

    def descended(
        self, optimizer: optax.GradientTransformation, loss_of: LossOf
    ) -> tuple["TrainState", dict[str, Array]]:
        """``updated`` along the gradient of a loss; and all that is watched, the loss first."""
        (loss, terms), grads = jax.value_and_grad(loss_of, has_aux=True)(self.params)
        state = self.updated(optimizer, loss, grads)
        return state, {"loss": loss, **terms, **state.counts}


def each(state: S, change: Callable[[TrainState], TrainState]) -> S:
    """The state of a system with every training state in it changed, wherever it keeps them."""

    def changed(part: object) -> object:
        return change(part) if isinstance(part, TrainState) else part

    return jax.tree.map(changed, state, is_leaf=lambda part: isinstance(part, TrainState))


def settled(state: S) -> S:
    """A system's state as it is used after training: with averaged parameters where kept."""
    return each(state, lambda one: replace(one, params=one.averaged))


def create(network: Network, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step."""
    return TrainState(
        params=network.params,
        stats=network.stats,
        opt_state=optimizer.init(network.params),
        step=jnp.zeros((), jnp.int32),
        skipped=jnp.zeros((), jnp.int32),
        in_a_row=jnp.zeros((), jnp.int32),
    )


def template(network: Network, optimizer: optax.GradientTransformation) -> TrainState:
    """The shape of the state before the first step; allocates nothing."""

    def start(params: Variables, stats: Variables) -> TrainState:
        return create(network._replace(params=params, stats=stats), optimizer)

    return jax.eval_shape(start, network.params, network.stats)


def abstract(make: Callable[[], nnx.Module]) -> Network:
    """The network that ``make`` would build, with shapes in place of arrays."""
    return functional(nnx.eval_shape(make))
