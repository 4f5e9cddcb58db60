"""The k-shot regime: a label-free combiner fine-tuned on k images whose pixels are labelled.

A regime of its own, whose numbers never stand in a column with label-free ones. The labelled images
come from the training split and fill a share of what is seen; the rest are the other training
images, whose teacher is that of the label-free network, with a weight that falls as labels grow:
1 / (1 + k / 20). Fine-tuning on the labelled images alone forgets more than five of them teach.

What few images teach holds in part for them alone. So the weights go only a part of the way from
the label-free ones to the fine-tuned ones: on a straight line between them the network keeps what
both can do. Source: Wortsman et al. 2022 ("Robust fine-tuning of zero-shot models"), equation 1.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import jax
import numpy as np

from wsss_jax.combiner import combiner_networks, combiner_run, fusion, learn_combiner
from wsss_jax.combiner.evidence import Inputs
from wsss_jax.config import as_json, since
from wsss_jax.data.files import write_atomic
from wsss_jax.data.stores import masks_read, open_store
from wsss_jax.errors import UserError
from wsss_jax.run import folders
from wsss_jax.train.state import TrainState


@dataclass(frozen=True)
class FewShot:
    """How many images are labelled, and how long they teach.

    Attributes:
        images: k, the labelled images.
        epochs: passes over the images without pixel labels.
        share: of labelled images in what is seen.
        learning_rate: of the fine-tuning, at its peak.
        way: share of the way from the label-free weights to the fine-tuned ones, 1 all of it.
        probe_share: of labelled images in what the last probe learns from; 0: none, it then takes
            of them too what the network says.
        seed: of the draw of images.
    """

    images: int = 5
    epochs: int = 2
    share: float = 0.5
    learning_rate: float = 1e-3
    way: float = 0.5
    probe_share: float = since(0.0, 0.25)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.images < 1 or self.epochs < 1 or not 0 < self.share < 1:
            raise UserError(
                f"{self.images} labelled images, {self.epochs} epochs, share {self.share}; wanted "
                "at least one of each and a share between 0 and 1"
            )
        if not 0 < self.way <= 1:
            raise UserError(f"{self.way} of the way to the fine-tuned weights; wanted up to 1")
        if not 0 <= self.probe_share < 1:
            raise UserError(f"{self.probe_share} of the probe's weight; wanted a share below 1")


def fine_tune(
    run: Path, inputs: Inputs, folder: Path, settings: FewShot, *, ids: Sequence[str]
) -> Path:
    """Fine-tune the finished combiner ``run`` on the true masks of k of ``ids``.

    The masks of no other image are read. Returns ``folder``, a run like that of
    ``learn_combiner.learn`` whose settings name the labelled images. Raises ValueError when there
    are fewer than k images with labels and masks.
    """
    learned, channels = combiner_run.finished(run)
    labelled = drawn(inputs, settings, ids)
    shots = replace(
        learned,
        epochs=settings.epochs,
        protocol=replace(
            learned.protocol,
            consensus_weight=1 / (1 + settings.images / 20),
            optim=replace(learned.protocol.optim, learning_rate=settings.learning_rate),
        ),
    )
    record = folders.record_of(run, "run `wsss combine --run`")
    made = {name: value for name, value in record.items() if name != "versions"}
    read = masks_read(made, {"labelled": labelled})
    content = {**made, "few_shot": as_json(settings), **read}
    folders.claim(folder, {**content, "students_of": os.path.relpath(run, folder)})
    if folders.is_finished(folder):
        return folder
    taught = replace(
        combiner_run.seen_by(run, inputs),
        last_probe=None,
        labelled=frozenset(labelled),
        target=open_store(run / learned.target(channels)),
    )
    start = combiner_networks.distilled(run)
    learn_combiner.trained(
        folder / "distilled",
        partial(fusion.make_distilled, shots.protocol, start=start),
        taught,
        taught.slots(ids),
        shots,
        times=_times(labelled, taught.slots(ids), settings.share),
    )
    if settings.way < 1:
        _stop_short(folder / "distilled", combiner_networks.distilled(run), settings.way)
    share = settings.probe_share
    known = taught if share else replace(taught, labelled=frozenset())
    learn_combiner.conclude(folder, known, learned, list(ids), share=share)
    write_atomic(folder / "finished", b"fine-tuned\n")
    return folder


def _stop_short(folder: Path, start: TrainState, way: float) -> None:
    """Choose for the run the weights that are so far on the way from start to its last ones."""
    last = folders.last_state(folder, start)
    between = jax.tree.map(lambda a, b: (1 - way) * a + way * b, start.params, last.params)
    folders.choose(folder, int(last.step), replace(last, params=between))


def drawn(inputs: Inputs, settings: FewShot, ids: Sequence[str]) -> tuple[str, ...]:
    """The ids whose pixels count as labelled: k at random among those with classes and masks."""
    usable = [id for id in inputs.slots(ids) if inputs.source.mask(id) is not None]
    if len(usable) < settings.images:
        raise UserError(
            f"{len(usable)} images have labels and true masks, {settings.images} are wanted; "
            "label more or take a smaller k"
        )
    order = np.random.default_rng(settings.seed).permutation(len(usable))
    return tuple(usable[i] for i in order[: settings.images])


def _times(labelled: Sequence[str], slots: Mapping[str, int], share: float) -> dict[str, int]:
    """How often each labelled image comes in an epoch, so that they have their share of it."""
    others = len(slots) - len(labelled)
    often = round(others * share / (1 - share) / len(labelled))
    return dict.fromkeys(labelled, max(often, 1))
