"""Puzzle-CAM, OC-CSE, and P-OC, which is both: a classifier and one or two further terms.

Sources: Jo & Yu 2021; Kweon et al. 2021; David, Pedrini & Dias 2024 (P-NOC), section on P-OC. The
terms are in ``terms``; here they are weighted and summed. P-NOC, where the ordinary classifier
learns too, is in ``pnoc``.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

import jax
from jaxtyping import Array, PRNGKeyArray

from wsss_jax.losses import regularisers
from wsss_jax.models import heads
from wsss_jax.systems import classifier, ordinary, terms
from wsss_jax.systems.classifier import Classifier
from wsss_jax.systems.entry import Explained
from wsss_jax.systems.ordinary import Judge
from wsss_jax.systems.terms import Erasing, Puzzle, View
from wsss_jax.train.state import TrainState
from wsss_jax.types import Batch, System, Variables

Metrics = dict[str, Array]


@dataclass(frozen=True)
class PuzzleCam:
    """Puzzle-CAM: class maps of the image and of its tiles must be the same.

    Attributes:
        classifier: the network and its optimizer.
        puzzle: the reconstruction.
    """

    classifier: Classifier = field(default_factory=Classifier)
    puzzle: Puzzle = field(default_factory=Puzzle)


@dataclass(frozen=True)
class OcCse:
    """OC-CSE: what class maps erase must remove the class for a second, ordinary classifier.

    Attributes:
        classifier: the network and its optimizer.
        erasing: how, and the ordinary classifier. OC-CSE's own weight is a staircase of 15.
        ordinary_network: backbone, stride and head of the ordinary classifier; None where they
            are the learner's.
    """

    classifier: Classifier
    erasing: Erasing
    ordinary_network: Classifier | None = None


@dataclass(frozen=True)
class POc:
    """P-OC: Puzzle-CAM and OC-CSE together.

    Attributes:
        classifier: the network and its optimizer.
        erasing: how, and the ordinary classifier.
        puzzle: the reconstruction.
        ordinary_network: as of OcCse.
    """

    classifier: Classifier
    erasing: Erasing
    puzzle: Puzzle = field(default_factory=Puzzle)
    ordinary_network: Classifier | None = None


@runtime_checkable
class Judging(Protocol):
    """Settings of a system whose learner another classifier judges."""

    @property
    def classifier(self) -> Classifier:
        """The network that learns."""
        ...

    @property
    def ordinary_network(self) -> Classifier | None:
        """The structure of the judge; None where it is that of the learner."""
        ...


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Judged:
    """A network that learns, and one that judges it and does not change."""

    learner: TrainState
    judge: Judge


def make_puzzle(settings: PuzzleCam, *, classes: int, steps: int) -> System:
    """Puzzle-CAM as a learning problem of ``steps`` updates over ``classes`` classes."""
    own = settings.classifier
    network, update = classifier.structure(own, classes), classifier.update_of(own, steps)

    def init(key: PRNGKeyArray) -> TrainState:
        return classifier.start(own, classes, steps, key)

    def step(state: TrainState, batch: Batch, key: PRNGKeyArray) -> tuple[TrainState, Metrics]:
        def loss_of(params: Variables) -> tuple[Array, Metrics]:
            module = network.bind(params, state.stats)
            loss, _, metrics = whole_and_tiles(
                module, own, settings.puzzle, batch, key, progress=(state.step, steps)
            )
            return loss, metrics

        return state.descended(update, loss_of)

    return System(init, step)


def make_judged(settings: OcCse | POc, *, classes: int, steps: int) -> System:
    """OC-CSE or P-OC as a learning problem of ``steps`` updates over ``classes`` classes."""
    own, other = settings.classifier, judging(settings)
    network, update = classifier.structure(own, classes), classifier.update_of(own, steps)
    judges = classifier.structure(other, classes)
    tiles = settings.puzzle if isinstance(settings, POc) else None
    erases = erasing_loss(own, settings.erasing)

    def init(key: PRNGKeyArray) -> Judged:
        judge = ordinary.read(settings.erasing.ordinary, other, classes)
        return Judged(classifier.start(own, classes, steps, key), judge)

    def step(state: Judged, batch: Batch, key: PRNGKeyArray) -> tuple[Judged, Metrics]:
        learner, progress = state.learner, (state.learner.step, steps)
        key_drop, key_class = jax.random.split(key)
        chosen = regularisers.chosen_class(batch.labels, key_class)

        def loss_of(params: Variables) -> tuple[Array, Metrics]:
            module = network.bind(params, learner.stats)
            judge = judges.bind(*state.judge)
            loss, view, metrics = whole_and_tiles(
                module, own, tiles, batch, key_drop, progress=progress
            )
            more, erased = erases(judge, view, chosen, progress)
            return loss + more, {**metrics, **erased}

        learner, metrics = learner.descended(update, loss_of)
        return replace(state, learner=learner), metrics

    return System(init, step)


def template_puzzle(settings: PuzzleCam, classes: int) -> TrainState:
    """The shape of the state of ``make_puzzle``."""
    return classifier.template(settings.classifier, classes)


def template_judged(settings: OcCse | POc, classes: int) -> Judged:
    """The shape of the state of ``make_judged``; the ordinary classifier's run is not read."""
    judge = ordinary.shape(judging(settings), classes)
    return Judged(classifier.template(settings.classifier, classes), judge)


def explained_puzzle(settings: PuzzleCam) -> Explained:
    """The network that class maps are asked of."""
    return classifier.explained(settings.classifier)


def explained_judged(settings: OcCse | POc) -> Explained:
    """The network that class maps are asked of: the one that learned."""
    own = classifier.explained(settings.classifier)
    return own._replace(weights=lambda state: own.weights(state.learner))


def judging(settings: Judging) -> Classifier:
    """The structure of the ordinary classifier."""
    return settings.ordinary_network or settings.classifier


def whole_and_tiles(
    module: heads.Classifier,
    own: Classifier,
    tiles: Puzzle | None,
    batch: Batch,
    key: PRNGKeyArray,
    *,
    progress: terms.Progress,
) -> tuple[Array, View, Metrics]:
    """Classification of whole images and, where wanted, of tiles with their reconstruction.

    progress: (step, steps). Returns the weighted sum, the view, and each term unweighted.
    """
    key_whole, key_tiles = jax.random.split(key)
    logits, view = terms.look(module, batch, own.label_smoothing, key_whole)
    loss = own.loss.of(logits, view.targets, batch)
    metrics = {"loss_whole": loss}
    if tiles is not None:
        tiled, distance = terms.puzzle(view, tiles, key_tiles)
        metrics |= {"loss_tiles": tiled, "reconstruction": distance}
        loss = loss + tiled + tiles.at(*progress) * distance
    return loss, view, metrics


def erasing_loss(
    own: Classifier, erasing: Erasing
) -> Callable[[heads.Classifier, View, Array, terms.Progress], tuple[Array, Metrics]]:
    """The term that erases softly before a judge: (judge, view, chosen, progress) to its value.

    The judge has no dropout here: it is not the one that learns.
    """
    lean = classifier.lean(own)

    def value(
        judge: heads.Classifier, view: View, chosen: Array, progress: terms.Progress
    ) -> tuple[Array, Metrics]:
        mask = regularisers.soft_mask(terms.region(view, chosen, lean), view.batch.real)
        targets = terms.without(view.batch, chosen, own.label_smoothing)
        loss = terms.seen_without(judge, view.batch, mask, targets, None)
        return erasing.at(*progress) * loss, {"loss_erased": loss}

    return value
