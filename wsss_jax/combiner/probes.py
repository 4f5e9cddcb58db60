"""Linear probes: what the cells of a class have in common over the whole data set.

A linear probe is a softmax regression of single cells, from frozen features, colours and saliency
to background and all classes (Alain & Bengio 2016 use the word for one that looks into a network).
Systems err image by image; what all images of a class have in common is mostly the class. A probe
learns from pseudo-labels, without a mask. Two choices are learned from each cell: between
background and the classes that its image shows; and, from a cell of a class, between all classes,
since an image label tells that the others are not there. The first alone never compares two classes
that no image shows together.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree

from wsss_jax.data.files import write_atomic
from wsss_jax.data.stores import read_npz
from wsss_jax.errors import BadFileError, UserError

STEPS = 60
"""Of L-BFGS; the objective is convex, and maps do not change after about 40."""

IMPOSSIBLE = -1e9
"""Logit of what cannot be chosen."""


@dataclass(frozen=True)
class Probe:
    """Logits of a cell are ``offset + cells @ kernel``, column 0 background.

    classes: names, in the order of the columns after the first. kernel: (d, 1 + c), of what
    ``cells_of`` gives. offset: (1 + c,), -inf for background where there is none.
    """

    classes: tuple[str, ...]
    kernel: Float[np.ndarray, "d n"]
    offset: Float[np.ndarray, " n"]

    @cached_property
    def _column(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.classes, start=1)}

    def probabilities(
        self, cells: Float[np.ndarray, "m d"], names: Sequence[str]
    ) -> Float[np.ndarray, "m n"]:
        """Of background, then of the named classes; an image shows these and no other.

        Raises UserError for a class that the probe has not learned, and for cells of another width
        than those it was learned from.
        """
        if cells.shape[1] != len(self.kernel):
            raise UserError(
                f"the probe was learned from cells of {len(self.kernel)} numbers, these have "
                f"{cells.shape[1]}; give the features and the saliency of its training"
            )
        unknown = [name for name in names if name not in self._column]
        if unknown:
            raise UserError(f"the probe has not learned {', '.join(unknown)}; learn it again")
        asked = [0, *(self._column[name] for name in names)]
        logits = cells @ self.kernel[:, asked] + self.offset[asked]
        raised = np.exp(logits - logits.max(axis=1, keepdims=True))
        return (raised / raised.sum(axis=1, keepdims=True)).astype(np.float32)

    def save(self, path: Path) -> None:
        """Write it, whole or not at all."""
        buffer = io.BytesIO()
        names = np.frombuffer("\n".join(self.classes).encode(), np.uint8)
        np.savez(buffer, classes=names, kernel=self.kernel, offset=self.offset)
        write_atomic(path, buffer.getvalue())


def load(path: Path) -> Probe:
    """A probe that ``Probe.save`` wrote. BadFileError for a file that is none."""
    arrays = read_npz(path, {"classes": "u", "kernel": "f", "offset": "f"})
    kernel, offset = arrays["kernel"], arrays["offset"]
    classes = tuple(arrays["classes"].astype(np.uint8).tobytes().decode().split("\n"))
    wanted = (len(classes) + 1,)
    if kernel.ndim != 2 or kernel.shape[1:] != wanted or offset.shape != wanted:
        raise BadFileError(
            f"{path}: kernel {kernel.shape} and offset {offset.shape} for {len(classes)} classes; "
            "wanted a column for each and one for background; learn the combiner again"
        )
    return Probe(classes, kernel, offset)


def cells_of(
    features: Float[np.ndarray, "*b f"],
    image: Float[np.ndarray, "*b 3"],
    saliency: Float[np.ndarray, "*b"] | None,
) -> Float[np.ndarray, "m d"]:
    """What a probe is given of each cell: features, colours to the second order, saliency.

    features: of one frozen network. saliency: None leaves it out; so a probe's cells are
    of one width for all images of a data set.
    """
    colours = 2 * image.reshape(-1, 3) - 1
    parts = [
        features.reshape(len(colours), -1),
        colours,
        colours * colours,
        colours * np.roll(colours, -1, axis=1),
    ]
    if saliency is not None:
        level = saliency.reshape(-1, 1)
        parts += [level, level * level]
    return np.concatenate(parts, axis=1, dtype=np.float32)


def fit(
    classes: tuple[str, ...],
    cells: Float[np.ndarray, "n d"],
    labels: Int[np.ndarray, " n"],
    possible: Bool[np.ndarray, "n c"],
    weights: Float[np.ndarray, " n"],
    *,
    penalty: float,
) -> Probe:
    """The probe that maximises the mean log-likelihood of both choices less a penalty.

    labels: column of each cell (0 background, class + 1), one of its ``possible`` ones, among which
    the first choice is. weights: of the cells, > 0. penalty: of the squared kernel, in
    standard deviations of ``cells``. Raises UserError where there is no cell.
    """
    if not len(cells):
        raise UserError("no image can be used, so there is nothing that a probe could learn")
    centre, scale = cells.mean(axis=0), cells.std(axis=0) + 1e-6
    kernel, offset = _fitted(
        jnp.asarray((cells - centre) / scale),
        jnp.asarray(labels),
        jnp.asarray(possible),
        jnp.asarray(weights / (weights.sum() + weights[labels > 0].sum()), jnp.float32),
        jnp.float32(penalty),
    )
    kernel = np.asarray(kernel) / scale[:, None]
    offset = np.asarray(offset) - centre @ kernel
    if not possible[:, 0].any():
        offset[0] = -np.inf
    return Probe(classes, kernel.astype(np.float32), offset.astype(np.float32))


@jax.jit
def _fitted(
    cells: Float[Array, "n d"],
    labels: Int[Array, " n"],
    possible: Bool[Array, "n c"],
    weights: Float[Array, " n"],
    penalty: Float[Array, ""],
) -> tuple[Float[Array, "d c"], Float[Array, " c"]]:
    def loss(parameters: tuple[Array, Array]) -> Array:
        kernel, offset = parameters
        logits = cells @ kernel + offset[None]
        here = _log_likelihood(jnp.where(possible, logits, IMPOSSIBLE), labels)
        classes = _log_likelihood(logits.at[:, 0].set(IMPOSSIBLE), labels)
        both = here + jnp.where(labels > 0, classes, 0)
        return penalty * jnp.square(kernel).sum() - (weights * both).sum()

    solver = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(loss)

    def step(_: Array, carried: tuple[PyTree, PyTree]) -> tuple[PyTree, PyTree]:
        parameters, state = carried
        value, grad = value_and_grad(parameters, state=state)
        updates, state = solver.update(
            grad, state, parameters, value=value, grad=grad, value_fn=loss
        )
        return optax.apply_updates(parameters, updates), state

    start = (jnp.zeros((cells.shape[1], possible.shape[1])), jnp.zeros(possible.shape[1]))
    return jax.lax.fori_loop(0, STEPS, step, (start, solver.init(start)))[0]


def _log_likelihood(logits: Float[Array, "n c"], labels: Int[Array, " n"]) -> Float[Array, " n"]:
    return jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1)[:, 0]
