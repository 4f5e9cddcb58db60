"""The learned combiner as one step: learn, fine-tune on few masks if asked, and fuse."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from wsss_jax.combiner import combine_probes, few_shot, learn_combiner
from wsss_jax.combiner.combiner_run import Combining
from wsss_jax.combiner.evidence import Inputs
from wsss_jax.combiner.few_shot import FewShot
from wsss_jax.data.datasets import Source
from wsss_jax.data.stores import Store, open_store
from wsss_jax.errors import UserError


@dataclass(frozen=True)
class Learned:
    """A learned combiner, asked for on the command line.

    Attributes:
        run: folder of the learned combiner, which is learned there first where that is not done;
            without it a rule fuses.
        learn_split: the images whose labels teach it.
        edges: store of edge maps that it sees (``wsss edges``).
        features: store of frozen features that it sees (``wsss features``).
        labelled: images of learn_split whose true masks teach it as well, drawn by the seed among
            those that have one; a regime of its own, in the folder RUN_k<labelled>; 0 reads none.
        learn: False fuses by the run as it is, whose systems may have been others: some are
            missing, some are new.
        combining: how it learns.
    """

    run: Path | None = None
    learn_split: str = "train"
    edges: Path | None = None
    features: Path | None = None
    labelled: int = 0
    learn: bool = True
    combining: Combining = field(default_factory=Combining)

    def __post_init__(self) -> None:
        given = {"edges": self.edges, "features": self.features, "labelled": self.labelled}
        asked = ", ".join(f"--{name}" for name, value in given.items() if value)
        if asked and self.run is None:
            raise UserError(
                f"{asked}: for the learned combiner, not for a rule; name the folder of its run "
                "(--run) or leave it out"
            )


def combine(
    chosen: Learned,
    systems: Sequence[Store],
    saliency: Store | None,
    source: Source,
    teaching: Source,
    out: Path,
) -> Store:
    """Learn on ``teaching`` where that is not done, then fuse all images of ``source``.

    Raises ValueError where no run folder is named, or more masks are asked for than there are, and
    BadFileError where nothing is to be learned and the run is not finished.
    """
    if chosen.run is None:
        raise UserError("name the folder of the combiner's run (--run)")
    edges, seen = (
        None if path is None else open_store(path) for path in (chosen.edges, chosen.features)
    )
    inputs = Inputs(source, tuple(systems), saliency=saliency, edges=edges, features=seen)
    taught = replace(inputs, source=teaching)
    if not chosen.learn:
        if chosen.labelled:
            raise UserError(
                "--labelled learns, and --no-learn does not; name the run RUN_k… itself"
            )
        return fuse(chosen.run, inputs, out, ids=source.ids, network=chosen.combining.network)
    if chosen.labelled and not chosen.combining.network:
        raise UserError("--labelled fine-tunes a network, and --combining.no-network learns none")
    run = learn(taught, chosen.run, chosen.combining, ids=teaching.ids)
    if chosen.labelled:
        shots = FewShot(chosen.labelled, seed=chosen.combining.seed)
        folder = run.with_name(f"{run.name}_k{chosen.labelled}")
        run = few_shot.fine_tune(run, taught, folder, shots, ids=teaching.ids)
    return fuse(run, inputs, out, ids=source.ids, network=chosen.combining.network)


def learn(inputs: Inputs, run: Path, settings: Combining, *, ids: Sequence[str]) -> Path:
    """The network and its probes, or without a network the probe alone, into a run folder."""
    stage = learn_combiner if settings.network else combine_probes
    return stage.learn(inputs, run, settings, ids=ids)


def fuse(run: Path, inputs: Inputs, out: Path, *, ids: Sequence[str], network: bool) -> Store:
    """Probabilities of ``ids`` as a store; beside it, of a network, its gates and uncertainty."""
    if network:
        return learn_combiner.fuse(run, inputs, out, ids=ids)[0]
    return combine_probes.fuse(run, inputs, out, ids=ids)


def by_probes(out: Path) -> list[Store]:
    """What probes alone made of all systems, where ``fuse`` averaged its network with it."""
    return _there(out, ["probes"])


def each_mended(out: Path, systems: Sequence[Store]) -> list[Store]:
    """Each system with probes of its own, the rivals that count, where ``fuse`` made them."""
    names = [store.folder.name for store in systems]
    return _there(combine_probes.beside(out, "probes") if by_probes(out) else out, names)


def _there(out: Path, names: Sequence[str]) -> list[Store]:
    folders = [combine_probes.beside(out, name) for name in names]
    return [open_store(folder) for folder in folders if folder.is_dir()]
