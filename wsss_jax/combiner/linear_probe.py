"""How a linear probe is learned from what the cells of many images are taken for.

Softmax regression with a quadratic penalty, by L-BFGS. Each cell chooses between background and the
classes that its image shows, which the image labels say; so a class is told from what it stands
beside, and no cell is a negative example of a class that its image lacks.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from wsss_jax.errors import UserError

STEPS = 60
"""Of L-BFGS; the objective is convex, and maps do not change after about 40."""


def fit(
    seen: Float[np.ndarray, "n d"],
    labels: Int[np.ndarray, " n"],
    possible: Bool[np.ndarray, "n c"],
    weights: Float[np.ndarray, " n"],
    *,
    penalty: float,
) -> tuple[Float[np.ndarray, "d c"], Float[np.ndarray, " c"]]:
    """(kernel, offset) of the logits.

    labels: column of each cell, one of its ``possible`` ones. weights: of the cells, > 0. penalty:
    of the squared kernel, in standard deviations of ``seen``, beside the mean log-likelihood.
    Raises ValueError where there is no cell.
    """
    if not len(seen):
        raise UserError("no cell to learn from; wanted at least one image with maps")
    centre, scale = seen.mean(axis=0), seen.std(axis=0) + 1e-6
    whole = weights / weights.sum()
    kernel, offset = _fitted(
        jnp.asarray((seen - centre) / scale),
        jnp.asarray(labels),
        jnp.asarray(possible),
        jnp.asarray(whole, jnp.float32),
        jnp.float32(penalty),
    )
    kernel = np.asarray(kernel) / scale[:, None]
    return kernel, np.asarray(offset) - centre @ kernel


def with_share(
    kernel: Float[np.ndarray, "d c"],
    offset: Float[np.ndarray, " c"],
    seen: Float[np.ndarray, "n d"],
    labels: Int[np.ndarray, " n"],
    possible: Bool[np.ndarray, "n c"],
    weights: Float[np.ndarray, " n"],
) -> Float[np.ndarray, " c"]:
    """The offset with which as much weight is called background, column 0, as the labels say.

    Labels err, and a likelihood hedges towards the commoner side: so more would be called
    background than the labels have. Background must be possible in all cells.
    """
    logits = np.where(possible, seen @ kernel + offset, -np.inf)
    lead = logits[:, 0] - logits[:, 1:].max(axis=1)
    order = np.argsort(-lead)
    reached = np.cumsum(weights[order]) / weights.sum()
    share = weights[labels == 0].sum() / weights.sum()
    last = min(int(np.searchsorted(reached, share)), len(order) - 1)
    moved = np.array(offset)
    moved[0] -= lead[order[last]]
    return moved


@jax.jit
def _fitted(
    seen: Float[Array, "n d"],
    labels: Int[Array, " n"],
    possible: Bool[Array, "n c"],
    weights: Float[Array, " n"],
    penalty: Float[Array, ""],
) -> tuple[Float[Array, "d c"], Float[Array, " c"]]:
    def loss(parameters: Any) -> Array:
        kernel, offset = parameters
        logits = jnp.where(possible, seen @ kernel + offset[None], -1e9)
        said = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1)[:, 0]
        return penalty * jnp.square(kernel).sum() - (weights * said).sum()

    solver = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(loss)

    def step(_: Any, carried: Any) -> Any:
        parameters, state = carried
        value, grad = value_and_grad(parameters, state=state)
        updates, state = solver.update(
            grad, state, parameters, value=value, grad=grad, value_fn=loss
        )
        return optax.apply_updates(parameters, updates), state

    start = (jnp.zeros((seen.shape[1], possible.shape[1])), jnp.zeros(possible.shape[1]))
    return jax.lax.fori_loop(0, STEPS, step, (start, solver.init(start)))[0]
