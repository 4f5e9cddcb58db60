"""How the combiner learns without a pixel label, and with a few.

A network that sees everything its teacher saw learns to be its teacher. So each *student* sees a
part of the systems, and learns from the closed-form consensus of the others: mean × saliency,
random walk, threshold. What the parts have in common beyond that is the image itself. The students'
mean is better than any of them and than the consensus; one network that sees all systems (or any
part of them, by system dropout) is then *distilled* from it. Losses are robust, since targets err.

Source: learning from the view of others, Blum & Mitchell 1998. Not here: files
(``combiner.learn_combiner``).
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from wsss_jax.combiner import consensus as ops
from wsss_jax.combiner import network
from wsss_jax.combiner.label_free import Protocol
from wsss_jax.combiner.network import Combined, CombinerShape
from wsss_jax.ops import losses
from wsss_jax.train import state as states
from wsss_jax.train.optimizers import optimizer
from wsss_jax.train.state import Network, TrainState
from wsss_jax.types import IGNORE, Evidence, System


class Students(NamedTuple):
    """The state of all students.

    What sets them apart is data, not part of the program, so that other seeds, other data sets and
    rows of an ablation run what was compiled once.

    state: their states, stacked along the first axis. seen: (students, systems), which systems each
    sees. threshold: (), of their teacher.
    """

    state: TrainState
    seen: Any
    threshold: Any


def make_students(
    protocol: Protocol,
    *,
    seen: Bool[np.ndarray, "students systems"],
    features: int,
    steps: int,
) -> System:
    """All students as one learning problem, whose state is ``Students``.

    ``Evidence.target``, where there is one, teaches in place of the closed-form consensus.

    Each step is one student's, in turn: all of them in a loop inside the step would take XLA's CPU
    backend four times as long. ``steps`` counts those of one student.
    """
    network, update = structure(protocol.shape, features), _optimizer(protocol, steps)

    def init(key: Any) -> Students:
        keys = jax.random.split(key, len(seen))
        each = [_start(protocol, features, one, update) for one in keys]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)
        return Students(stacked, jnp.asarray(seen), jnp.float32(protocol.threshold))

    def step(group: Students, batch: Evidence, key: Any) -> tuple[Students, dict[str, Array]]:
        turn = group.state.step.sum() % len(seen)
        own = one_of(group.state, turn)
        inputs, teachers = _views(protocol, group.seen[turn], batch.available)
        if batch.target is None:
            labels, counted = teacher_labels(protocol, batch, teachers, group.threshold)
        else:
            labels, counted = target_labels(batch)
        shown = _for_students(protocol, batch)
        own, loss = _update(protocol, network, update, own, shown, inputs, labels, counted, key)
        state = jax.tree.map(
            lambda many, one: jax.lax.dynamic_update_index_in_dim(many, one, turn, 0),
            group.state,
            own,
        )
        return group._replace(state=state), _metrics(loss, state)

    return System(init, step)


def make_distilled(
    protocol: Protocol, *, features: int, steps: int, start: TrainState | None = None
) -> System:
    """One network over all systems, taught by ``Evidence.target`` and, where given, by truth.

    start: parameters to go on from (k-shot fine-tuning); None starts afresh.
    """
    network, update = structure(protocol.shape, features), _optimizer(protocol, steps)

    def init(key: Any) -> TrainState:
        if start is None:
            return _start(protocol, features, key, update)
        return states.create(network._replace(params=start.params, stats=start.stats), update)

    def step(state: TrainState, batch: Evidence, key: Any) -> tuple[TrainState, dict[str, Array]]:
        dropped, jittered = jax.random.split(key)
        inputs = ops.random_part(batch.available, protocol.full_view, dropped)
        labels, counted = target_labels(batch)
        state, loss = _update(
            protocol, network, update, state, batch, inputs, labels, counted, jittered
        )
        return state, _metrics(loss, state)

    return System(init, step)


def structure(shape: CombinerShape, features: int) -> Network:
    """The network's structure, with shapes in place of values."""
    return states.abstract(lambda: _module(shape, features, jax.random.key(0)))


def template(protocol: Protocol, features: int) -> TrainState:
    """The shape of one network's state; allocates nothing."""
    network, update = structure(protocol.shape, features), _optimizer(protocol, 1)

    def start(params: Any, stats: Any) -> TrainState:
        return states.create(network._replace(params=params, stats=stats), update)

    return jax.eval_shape(start, network.params, network.stats)


def students_template(protocol: Protocol, features: int, systems: int) -> Students:
    """The shape of the state of ``protocol.students`` that learn from so many systems.

    Allocates nothing.
    """
    seen = np.zeros((protocol.students, systems), bool)
    start = make_students(protocol, seen=seen, features=features, steps=1).init
    return jax.eval_shape(start, jax.random.key(0))


def combine(
    network: Network, state: TrainState, evidence: Evidence, available: Bool[Array, "b s k"]
) -> Combined:
    """What a trained network says of evidence, from the systems that ``available`` names."""
    return network.bind(state.params, state.stats)(evidence, available)


def one_of(state: TrainState, student: int | Int[Array, ""]) -> TrainState:
    """One student's state, of those in ``Students.state``."""
    return jax.tree.map(lambda leaf: leaf[student], state)


def views_of(
    protocol: Protocol, seen: Bool[Array, "students s"], evidence: Evidence
) -> tuple[Evidence, ...]:
    """The evidence as each student sees it. Systems may be others than those of the training."""
    parts = [_views(protocol, view, evidence.available)[0] for view in seen]
    shown = _for_students(protocol, evidence)
    return tuple(replace(shown, available=part) for part in parts)


def students_mean(
    each: Sequence[Float[Array, "b h w n"]],
    views: Sequence[Evidence],
    *,
    steps: int,
    cut: bool = False,
) -> tuple[Float[Array, "b h w n"], Float[Array, "b h w"]]:
    """The mean of what students say, after a walk of so many steps, and how far they disagree.

    cut: the walk is cut by edges. each: what each says of its view. Disagreement is the standard
    deviation over students of their probabilities, at the class where it is largest. A student
    whose part lacks a class of an image does not count there.
    """
    every, evidence = jnp.stack(each), views[0]
    knows = [(v.available.any(axis=1) | ~v.present).all(axis=-1) for v in views]
    weight = jnp.stack(knows).astype(jnp.float32)[:, :, None, None, None]
    weight = jnp.where(weight.sum(axis=0, keepdims=True) > 0, weight, 1)
    mean = (every * weight).sum(axis=0) / weight.sum(axis=0)
    apart = jnp.sqrt((jnp.square(every - mean[None]) * weight).sum(axis=0) / weight.sum(axis=0))
    if steps:
        mean = ops.spread(mean, ops.joined(evidence, use_edges=cut), steps=steps)
    return mean, apart.max(axis=-1)


TEMPERATURES = tuple(2.0 ** (half / 2) for half in range(-2, 9))
"""What logits may be divided by, where systems that are left out are predicted: 1/2 to 16."""


def left_out_totals(
    network: Network, state: TrainState, evidence: Evidence, *, threshold: float = 0.4
) -> Float[Array, " n"]:
    """How well the combination of the others predicts each system, as sums for ``left_out_score``.

    Cross-entropy between what is said without system s, at each of TEMPERATURES, and the classes
    that s itself names at ``threshold``, summed over all s, cells and images; last, how many cells.
    """
    count = evidence.scores.shape[1]

    def without(s: Array) -> Array:
        others = evidence.available & (jnp.arange(count) != s)[None, :, None]
        logits = combine(network, state, evidence, others).logits
        scores = jax.lax.dynamic_index_in_dim(evidence.scores, s, 1, False)
        known = jax.lax.dynamic_index_in_dim(evidence.available, s, 1, False)
        labels = labels_at(ops.normalised(scores), evidence.present & known, threshold)
        judged = (known | ~evidence.present).all(axis=-1) & evidence.real
        judged &= (others.any(axis=1) | ~evidence.present).all(axis=-1)
        cells = evidence.inside & judged[:, None, None]

        def total(temperature: Array) -> Array:
            said = jax.nn.log_softmax(logits / temperature)
            picked = jnp.take_along_axis(said, labels[..., None], -1)[..., 0]
            return jnp.where(cells, -picked, 0).sum()

        totals = jax.lax.map(total, jnp.asarray(TEMPERATURES, jnp.float32))
        return jnp.append(totals, cells.sum().astype(jnp.float32))

    return jax.lax.map(without, jnp.arange(count)).sum(axis=0)


def left_out_score(totals: Float[np.ndarray, " n"]) -> float:
    """Label-free quality from sums of ``left_out_totals``: mean cross-entropy, lower is better.

    At the temperature that suits it best: with certainty alone cross-entropy against labels that
    err grows from epoch to epoch, however good the maps are. It is no mIoU: a combiner that copies
    the others' common errors scores well.
    """
    return float(np.min(totals[:-1]) / max(totals[-1], 1.0))


def consensus(
    protocol: Protocol, batch: Evidence, teachers: Bool[Array, "b s k"]
) -> Float[Array, "b h w k"]:
    """The maps that teach students: the teachers' closed form, as the protocol has it."""
    return ops.consensus(
        batch,
        teachers,
        steps=protocol.walk_steps,
        use_saliency=protocol.saliency,
        use_edges=protocol.shape.cut_walks,
        use_probe=True,
        use_features=protocol.walk_along == "features",
    )


def teacher_labels(
    protocol: Protocol,
    batch: Evidence,
    teachers: Bool[Array, "b s k"],
    threshold: Float[Array, ""],
) -> tuple[Int[Array, "b h w"], Bool[Array, "b h w"]]:
    """Hard labels (0 background, slot + 1) of the teachers' consensus, and which cells count.

    threshold: on maps whose maximum is 1; without background no cell is below it.
    Images of which the teachers know no class, or not all, do not count.
    """
    maps = consensus(protocol, batch, teachers)
    floor = threshold if protocol.shape.background else jnp.float32(-1)
    labels = labels_at(maps, batch.present, floor)
    taught = (teachers.any(axis=1) | ~batch.present).all(axis=-1) & batch.real
    return labels, batch.inside & taught[:, None, None]


def target_labels(batch: Evidence) -> tuple[Int[Array, "b h w"], Bool[Array, "b h w"]]:
    """Hard labels of soft targets, and which cells count."""
    return batch.target.argmax(axis=-1), batch.inside & batch.real[:, None, None]


def labels_at(
    maps: Float[Array, "b h w k"], present: Bool[Array, "b k"], threshold: float | Float[Array, ""]
) -> Int[Array, "b h w"]:
    """Slot + 1 of the highest map where it exceeds the threshold, else 0."""
    here = jnp.where(present[:, None, None, :], maps, -1)
    return jnp.where(here.max(axis=-1) > threshold, here.argmax(axis=-1) + 1, 0)


def _update(
    protocol: Protocol,
    network: Network,
    update: Any,
    state: TrainState,
    batch: Evidence,
    inputs: Bool[Array, "b s k"],
    labels: Int[Array, "b h w"],
    counted: Bool[Array, "b h w"],
    key: Any,
) -> tuple[TrainState, Float[Array, ""]]:
    """One step of one network: distort the evidence and its labels alike, and learn."""
    carried = replace(batch, target=None, truth=None)
    packed = replace(carried, target=jnp.stack([labels, counted.astype(labels.dtype)], axis=-1))
    if batch.truth is not None:
        packed = replace(packed, truth=batch.truth)
    seen = ops.distorted(packed, key, scores=protocol.jitter, colours=protocol.colour_jitter)
    labels, counted = seen.target[..., 0], seen.target[..., 1] > 0

    def loss_of(params: Any) -> Array:
        logits = network.bind(params, state.stats)(seen, inputs).logits
        q = protocol.q if protocol.loss == "gce" else 0.0
        believed = losses.generalised_cross_entropy(logits, labels, q=q)
        if seen.truth is None:
            loss = protocol.consensus_weight * _mean(believed, counted)
            if protocol.share_weight and protocol.shape.background:
                background = jax.nn.softmax(logits)[..., 0]
                away = losses.share_divergence(background, labels, counted)
                loss += protocol.share_weight * away
            return loss
        known = (seen.truth != IGNORE) & seen.inside & seen.real[:, None, None]
        exact = losses.generalised_cross_entropy(logits, jnp.where(known, seen.truth, 0), q=0.0)
        loss = protocol.consensus_weight * _mean(believed, counted & ~known)
        return loss + protocol.labelled_weight * _mean(exact, known)

    loss, grads = jax.value_and_grad(loss_of)(state.params)
    return state.updated(update, loss, grads), loss


def _views(
    protocol: Protocol, view: Bool[Array, " s"], available: Bool[Array, "b s k"]
) -> tuple[Bool[Array, "b s k"], Bool[Array, "b s k"]]:
    """What a student sees, and who teaches it: all systems where fewer than two are hidden."""
    mine = available & view[None, :, None]
    others = available & ~view[None, :, None]
    few = others.sum(axis=1, keepdims=True) < 2
    teachers = jnp.where(few, available, others) if protocol.disjoint else available
    return (mine if protocol.restricted else available), teachers


def _for_students(protocol: Protocol, evidence: Evidence) -> Evidence:
    """The cues that students see."""
    if protocol.probe_students:
        return evidence
    return replace(evidence, cues=evidence.cues & jnp.array([[True, True, False]]))


def _mean(values: Float[Array, "*b"], counted: Bool[Array, "*b"]) -> Float[Array, ""]:
    number = jnp.maximum(counted.sum().astype(values.dtype), 1)
    return jnp.where(counted, values, 0).sum() / number


def _metrics(loss: Float[Array, ""], state: TrainState) -> dict[str, Array]:
    return {"loss": loss, "skipped": state.skipped.sum(), "bad_in_a_row": state.in_a_row.max()}


def _optimizer(protocol: Protocol, steps: int) -> Any:
    return optimizer(protocol.optim, steps, lambda name: name.startswith(("add", "ask")))


def _start(protocol: Protocol, features: int, key: Any, update: Any) -> TrainState:
    return states.create(states.functional(_module(protocol.shape, features, key)), update)


def _module(shape: CombinerShape, features: int, key: Any) -> Any:
    return network.build(shape, features=features, key=key)
