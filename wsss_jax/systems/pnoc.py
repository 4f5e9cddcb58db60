"""P-NOC: a generator of class maps and a "not so ordinary" classifier, in alternation.

Source: David, Pedrini & Dias 2024 (P-NOC) and its code. On every batch the generator takes a step
of P-OC against the classifier as it is; then the classifier takes a step on the same images with
the chosen class's strongest region erased, told that everything is still there, so that it learns
to recognise what is left and the generator has to find more. Each player has its own optimizer.

Where we differ: BatchNorm keeps its statistics in both (the code lets the generator's move).
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from wsss_jax import losses
from wsss_jax.losses import regularisers
from wsss_jax.systems import classifier, ordinary, terms
from wsss_jax.systems.classifier import Classifier
from wsss_jax.systems.entry import Explained
from wsss_jax.systems.poc import Metrics, erasing_loss, judging, whole_and_tiles
from wsss_jax.systems.terms import Erasing, Puzzle
from wsss_jax.train import state as states
from wsss_jax.train.state import Network, TrainState
from wsss_jax.types import Batch, System, Variables


@dataclass(frozen=True)
class PNoc:
    """P-NOC: P-OC whose ordinary classifier is trained too, against the generator of maps.

    Attributes:
        classifier: the generator, its label smoothing (both players') and its optimizer.
        erasing: how the generator's maps are judged, and the run that the second player starts
            from.
        puzzle: the reconstruction.
        ordinary_network: backbone, stride, head and optimizer of the second player; None where
            they are the generator's.
        second_weight: of the second player's loss at the end; it rises linearly from 0 over all
            steps (the runs of the paper: 1; the script's default: 0.5).
        threshold: the second player loses the pixels above this part of the map's maximum.
        oc_grad_leak: add to the second player's gradient that of the generator's erasing term,
            which asks it for the opposite (the erased class is gone). The published code does so,
            because it clears that gradient only after the second player's step; the paper
            describes the clean version.
    """

    classifier: Classifier
    erasing: Erasing
    puzzle: Puzzle = field(default_factory=Puzzle)
    ordinary_network: Classifier | None = None
    second_weight: float = 1.0
    threshold: float = 0.2
    oc_grad_leak: bool = False


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Players:
    """Two networks that learn from one another."""

    generator: TrainState
    ordinary: TrainState


def make(settings: PNoc, *, classes: int, steps: int) -> System:
    """P-NOC as a learning problem of ``steps`` alternations over ``classes`` classes."""
    own, other = settings.classifier, judging(settings)
    update = classifier.update_of(own, steps)
    update_other = classifier.update_of(other, steps)
    structure_other = classifier.structure(other, classes)
    generate = generator_loss(settings, classes, steps)
    resist = second_loss(settings, structure_other, steps)

    def init(key: PRNGKeyArray) -> Players:
        judge = ordinary.read(settings.erasing.ordinary, other, classes)
        second = structure_other._replace(params=judge.params, stats=judge.stats)
        return Players(
            classifier.start(own, classes, steps, key), states.create(second, update_other)
        )

    def step(state: Players, batch: Batch, key: PRNGKeyArray) -> tuple[Players, Metrics]:
        key_class, key_one, key_two = jax.random.split(key, 3)
        chosen = regularisers.chosen_class(batch.labels, key_class)
        one, two = state.generator, state.ordinary
        played = jax.value_and_grad(generate, argnums=(0, 1), has_aux=True)
        (loss, (region, metrics)), (grads, leaked) = played(
            one.params, two.params, state, batch, chosen, key_one
        )
        mask = regularisers.hard_mask(jax.lax.stop_gradient(region), settings.threshold)
        loss_two, grads_two = jax.value_and_grad(resist)(two.params, two, batch, mask, key_two)
        if settings.oc_grad_leak:
            grads_two = jax.tree.map(jnp.add, grads_two, leaked)
        one = one.updated(update, loss, grads)
        two = two.updated(update_other, loss_two, grads_two)
        return Players(one, two), {
            "loss": loss,
            "loss_second": loss_two,
            **metrics,
            "skipped": one.skipped + two.skipped,
            "bad_in_a_row": jnp.maximum(one.in_a_row, two.in_a_row),
        }

    return System(init, step)


def generator_loss(
    settings: PNoc, classes: int, steps: int
) -> Callable[..., tuple[Array, tuple[Array, Metrics]]]:
    """The generator's loss, that of P-OC, as a function of both players' parameters.

    Its second result is the chosen class's map at every pixel and each term unweighted. Only the
    published leak asks for the second gradient; otherwise the compiler drops it.
    """
    own = settings.classifier
    network = classifier.structure(own, classes)
    other = classifier.structure(judging(settings), classes)
    erases, lean = erasing_loss(own, settings.erasing), classifier.lean(own)

    def loss_of(
        params: Variables,
        params_other: Variables,
        state: Players,
        batch: Batch,
        chosen: Array,
        key: PRNGKeyArray,
    ) -> tuple[Array, tuple[Array, Metrics]]:
        progress = (state.generator.step, steps)
        module = network.bind(params, state.generator.stats)
        judge = other.bind(params_other, state.ordinary.stats)
        loss, view, metrics = whole_and_tiles(
            module, own, settings.puzzle, batch, key, progress=progress
        )
        more, erased = erases(judge, view, chosen, progress)
        return loss + more, (terms.region(view, chosen, lean), {**metrics, **erased})

    return loss_of


def second_loss(settings: PNoc, network: Network, steps: int) -> Callable[..., Array]:
    """The second player's loss on erased images whose labels all stay."""
    smoothing = settings.classifier.label_smoothing

    def loss_of(
        params: Variables,
        state: TrainState,
        batch: Batch,
        mask: Float[Array, "b H W"],
        key: PRNGKeyArray,
    ) -> Array:
        module = network.bind(params, state.stats)
        targets = losses.smooth(batch.labels, smoothing)
        weight = regularisers.linear_schedule(
            state.step, steps, first=0.0, last=settings.second_weight, share=1.0
        )
        return weight * terms.seen_without(module, batch, mask, targets, key)

    return loss_of


def template(settings: PNoc, classes: int) -> Players:
    """The shape of the state; the ordinary classifier's run is not read."""
    return Players(
        classifier.template(settings.classifier, classes),
        classifier.template(judging(settings), classes),
    )


def explained(settings: PNoc) -> Explained:
    """The network that class maps are asked of: the generator."""
    own = classifier.explained(settings.classifier)
    return own._replace(weights=lambda state: own.weights(state.generator))
