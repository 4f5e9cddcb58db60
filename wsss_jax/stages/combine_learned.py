"""The learned combiner as one command: learn, fine-tune on few masks if asked, and fuse."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from wsss_jax.data.datasets import Source
from wsss_jax.data.evidence import Inputs
from wsss_jax.data.stores import Store, open_store
from wsss_jax.stages import few_shot, learn_combiner
from wsss_jax.stages.few_shot import FewShot
from wsss_jax.stages.learn_combiner import Combining


@dataclass(frozen=True)
class Learned:
    """A learned combiner, asked for on the command line.

    Attributes:
        run: its folder; trained there first when it is not finished.
        learn_split: the images whose labels teach it.
        edges: store of edge maps that it sees.
        features: store of frozen features that it sees (``wsss features``).
        labelled: images of learn_split whose true masks teach it as well, drawn by the seed among
            those that have one; a regime of its own, in the folder RUN_k<labelled>; 0 reads none.
        combining: how it learns.
    """

    run: Path | None = None
    learn_split: str = "train"
    edges: Path | None = None
    features: Path | None = None
    labelled: int = 0
    combining: Combining = field(default_factory=Combining)


def combine(
    chosen: Learned,
    systems: Sequence[Store],
    saliency: Store | None,
    source: Source,
    teaching: Source,
    out: Path,
) -> Store:
    """Learn on ``teaching`` where that is not done, then fuse all images of ``source``.

    Raises ValueError where no run folder is named, or more masks are asked for than there are.
    """
    if chosen.run is None:
        raise ValueError("name the folder of the combiner's run (--run)")
    edges, seen = (
        None if path is None else open_store(path) for path in (chosen.edges, chosen.features)
    )
    inputs = Inputs(source, tuple(systems), saliency=saliency, edges=edges, features=seen)
    taught = replace(inputs, source=teaching)
    run = learn_combiner.learn(taught, chosen.run, chosen.combining, ids=teaching.ids)
    if chosen.labelled:
        shots = FewShot(chosen.labelled, seed=chosen.combining.seed)
        folder = run.with_name(f"{run.name}_k{chosen.labelled}")
        run = few_shot.fine_tune(run, taught, folder, shots, ids=teaching.ids)
    fused, _, _ = learn_combiner.fuse(run, inputs, out, ids=source.ids)
    return fused
