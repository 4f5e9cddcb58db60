"""The command line: ``wsss <verb>``. It parses, calls one stage, and says where the result is.

Exit codes: 0 done, 1 bad input or failed run (one clear message), 2 wrong usage, 128 + signal when
stopped (the same command resumes).
"""

import importlib.util
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, TypeVar

import tyro

from wsss_jax import memory, xla
from wsss_jax.combiner import combine_learned
from wsss_jax.data import check as checks
from wsss_jax.data import views
from wsss_jax.data.datasets import Source, open_dataset
from wsss_jax.data.external import SALIENCY
from wsss_jax.data.stores import open_store, open_stores
from wsss_jax.errors import BadFileError, CorruptCheckpointError, DivergedError, UserError
from wsss_jax.recipes import affinity, demo, recipe, saliency, segment, summary
from wsss_jax.recipes import report as reporting
from wsss_jax.recipes.recipe import Recipe
from wsss_jax.run import folders
from wsss_jax.run.executors import Workers
from wsss_jax.run.progress import meter
from wsss_jax.stages import combine as combining
from wsss_jax.stages import edges, evaluate, features, import_maps, pictures
from wsss_jax.stages import masks as pseudo_masks
from wsss_jax.stages import refine as refining
from wsss_jax.stages import train as training
from wsss_jax.stages import weights as weights_stage

Positional = tyro.conf.Positional
T = TypeVar("T")
Bare = Annotated[T, tyro.conf.arg(name="")]
"""Settings whose flags carry no prefix of their own."""


@dataclass(frozen=True)
class Data:
    """The data set.

    Attributes:
        data: folder of the data set.
        layout: voc, folder, coco or tfds; "auto" tells them apart.
        split: name of a list of it, or "all".
        lists: folder of id lists (*.txt, cls_labels.npz) that lie elsewhere.
        only: classes to keep, all others are background; none for all classes.
    """

    data: Path
    layout: str = "auto"
    split: str = "all"
    lists: Path | None = None
    only: tuple[str, ...] = ()

    def open(self) -> Source:
        """The source on disk, of the classes that are asked for."""
        source = open_dataset(self.data, split=self.split, layout=self.layout, lists=self.lists)
        return views.only(source, self.only)


def run_demo(
    out: Path = Path("runs/demo"), images: int = demo.IMAGES, epochs: int = demo.EPOCHS
) -> None:
    """The whole path on the embedded data set, in minutes: report page and table at the end.

    Args:
        out: folder of everything that is made.
        images: scenes to draw; a third of them is for validation.
        epochs: passes over the training scenes.
    """
    data = demo.prepare(out / "data", images)
    _whole(demo.recipe(data, epochs=epochs), out)


def check(data: Positional[Path], layout: str = "auto", lists: Path | None = None) -> None:
    """List every problem of a data set; exit code 1 if there is one.

    Args:
        data: folder of the data set.
        layout: voc, folder, coco, tfds, or auto.
        lists: folder of id lists that lie elsewhere.
    """
    with meter("check", 1) as bar:
        findings = checks.survey(data, layout, lists=lists, progress=bar.reach)
    for notice in findings.notices:
        print(f"notice  {notice}")
    for problem in findings.problems:
        print(f"problem {problem}")
    count = f"{len(findings.problems)} problems, {len(findings.notices)} notices"
    print(f"{findings.images} images, {count}")
    if findings.problems:
        raise SystemExit(1)


def train(
    data: Bare[Data],
    out: Path,
    settings: Bare[training.Training] = training.Training(),  # noqa: B008
) -> None:
    """Train one system on image labels into a run folder.

    Args:
        data: the data set.
        out: run folder; the same command goes on where it was stopped.
        settings: the network and how it learns.
    """
    print(training.fit(data.open(), settings, out))


def import_priors(
    priors: Positional[Path],
    data: Path,
    out: Path,
    settings: Bare[import_maps.Import] = import_maps.Import(),  # noqa: B008
    split: str = "all",
    lists: Path | None = None,
    data_layout: str = "auto",
    workers: Workers = Workers(),  # noqa: B008
) -> None:
    """Read score maps, masks or saliency that another tool wrote.

    Args:
        priors: folder with one file per image, named by id, or a store.
        data: folder of the data set they belong to.
        out: store of score maps to write.
        settings: layout of the files, and how finely they are kept.
        split: name of a list of the data set, or "all".
        lists: folder of id lists that lie elsewhere.
        data_layout: voc, folder, coco or tfds; "auto" tells them apart.
        workers: processes and shards.
    """
    source = Data(data, data_layout, split, lists).open()
    store = import_maps.import_priors(
        settings, priors, source, out, ids=source.ids, workers=workers
    )
    print(store.folder)


def refine(
    store: Positional[Path],
    data: Bare[Data],
    out: Path,
    method: Literal["walk", "crf"] = "walk",
    walk: refining.Walk = refining.Walk(),  # noqa: B008
    crf: refining.Crf = refining.Crf(),  # noqa: B008
    workers: Workers = Workers(),  # noqa: B008
) -> None:
    """Refine score maps by random walk or dense CRF.

    Args:
        store: score maps to refine.
        data: the photographs they belong to.
        out: store of score maps to write.
        method: which of the two.
        walk: settings of the random walk.
        crf: settings of the dense CRF.
        workers: processes and shards.
    """
    source = data.open()
    settings = walk if method == "walk" else crf
    refined = refining.refine(
        open_store(store), source, out, settings, ids=source.ids, workers=workers
    )
    print(refined.folder)


def combine(
    stores: Positional[tuple[Path, ...]],
    data: Bare[Data],
    out: Path,
    fusion: Bare[combining.Fusion] = combining.Fusion(),  # noqa: B008
    saliency: Path | None = None,
    workers: Workers = Workers(),  # noqa: B008
    learned: Bare[combine_learned.Learned] = combine_learned.Learned(),  # noqa: B008
) -> None:
    """Fuse the score maps of several systems, by a closed-form rule or by the learned combiner.

    Args:
        stores: score maps of each system.
        data: the images, with their labels.
        out: store of score maps to write.
        fusion: the rule.
        saliency: store of saliency maps that weigh the result.
        workers: processes and shards, of a rule.
        learned: the combiner that learns from image labels, in place of a rule.
    """
    source = data.open()
    systems = open_stores(stores)
    cue = None if saliency is None else open_store(saliency)
    if learned.run is not None:
        teaching = replace(data, split=learned.learn_split).open()
        print(combine_learned.combine(learned, systems, cue, source, teaching, out).folder)
        return
    fused = combining.combine(
        systems, source, out, fusion, ids=source.ids, saliency=cue, workers=workers
    )
    print(fused.folder)


def judge(
    stores: Positional[tuple[Path, ...]],
    data: Bare[Data],
    out: Path | None = None,
    scoring: Bare[evaluate.Scoring] = evaluate.Scoring(),  # noqa: B008
    workers: Workers = Workers(),  # noqa: B008
    tuned_reference: bool = False,
) -> None:
    """Judge score maps or masks against true masks; the first store is the reference.

    Args:
        stores: what to judge.
        data: the images with true masks.
        out: folder for results.json and results.md.
        scoring: what counts, and where background begins.
        workers: processes and shards.
        tuned_reference: gains over the first store at its best threshold on this truth, in its
            favour; the other stores keep theirs.
    """
    source, opened = data.open(), open_stores(stores)
    if all(store.classes == SALIENCY.names for store in opened):
        source = views.agnostic(source)
    scoring = scoring.on(source)
    results = pseudo_masks.judged(opened, source, scoring, split=data.split, workers=workers)
    rows = summary.against_first(results, tuned=tuned_reference)
    summary.show(rows)
    if out is not None:
        summary.write(out, rows, source.classes)
        print(out / "results.md")


def report(
    stores: Positional[tuple[Path, ...]],
    data: Bare[Data],
    out: Path,
    scoring: Bare[evaluate.Scoring] = evaluate.Scoring(),  # noqa: B008
    gallery: int = 40,
) -> None:
    """Write one self-contained HTML page about stores of score maps.

    Args:
        stores: what to show, the best last.
        data: the photographs, and true masks where there are any.
        out: the page to write, for example report.html.
        scoring: what counts, and where background begins.
        gallery: photographs to show.
    """
    source = data.open()
    opened = open_stores(stores)
    print(reporting.page_of_stores(out, opened, source, scoring.on(source), gallery))


def run(
    experiment: Positional[Path],
    data: Path,
    weights: Path | None = None,
    train_only: tuple[str, ...] = (),
) -> None:
    """The whole recipe of an experiment file; further flags change its settings.

    Args:
        experiment: Python file with a function recipe(data, weights). It is executed: run only
            files that you trust.
        data: folder of the data set.
        weights: folder of pretrained weights, where the experiment wants them.
        train_only: train and explain these systems of the recipe and stop, so that several
            machines share them; the same command without it goes on from there.
    """
    raise AssertionError("the parser of run() is main(), which needs the experiment first")


VERBS: MappingProxyType[str, Callable[..., None]] = MappingProxyType(
    {
        "demo": run_demo,
        "check": check,
        "train": train,
        "explain": pictures.command,
        "import": import_priors,
        "refine": refine,
        "affinity": affinity.command,
        "edges": edges.command,
        "features": features.command,
        "combine": combine,
        "masks": pseudo_masks.command,
        "saliency": saliency.command,
        "segment": segment.command,
        "evaluate": judge,
        "report": report,
        "weights": weights_stage.command,
        "run": run,
    }
)
"""What ``wsss`` can do, in the order of the path."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the console script ``wsss``."""
    if arguments is None:
        memory.restart_with_large_pages()
        xla.keep_compiled()
    args = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if args[:1] == ["run"] and len(args) > 1 and not args[1].startswith("-"):
            _run_experiment(args[1:])
        else:
            tyro.extras.subcommand_cli_from_dict(
                dict(VERBS), prog="wsss", description=main_help(), args=args
            )
    except (
        BadFileError,
        ValueError,
        OSError,
        DivergedError,
        CorruptCheckpointError,
    ) as problem:
        print(f"error: {problem}", file=sys.stderr)
        raise SystemExit(1) from problem


def main_help() -> str:
    """What the first page of ``wsss --help`` says."""
    return "From image labels to pixel masks: train, explain, refine, fuse, evaluate."


def _run_experiment(args: list[str]) -> None:
    @dataclass(frozen=True)
    class Run:
        """The whole recipe of an experiment file; further flags change its settings.

        Attributes:
            experiment: Python file with a function recipe(data, weights); it is executed.
            data: folder of the data set.
            weights: folder of pretrained weights, where the experiment wants them.
            out: folder of everything that is made, runs/<name> by default.
            train_only: train and explain these systems of the recipe and stop, so that several
                machines share them; the same command without it goes on from there.
        """

        experiment: Positional[Path]
        data: Path
        weights: Path | None = None
        out: Path | None = None
        train_only: tuple[str, ...] = ()

    wants_help = {"-h", "--help"} & set(args)
    first = [arg for arg in args if arg not in wants_help]
    given, rest = tyro.cli(Run, prog="wsss run", args=first, return_unknown_args=True)
    made = _recipe_of(given.experiment)(given.data, given.weights)
    prog = f"wsss run {given.experiment}"
    final = tyro.cli(type(made), default=made, prog=prog, args=[*rest, *wants_help])
    out = given.out or Path("runs") / final.name
    if given.train_only:
        if not isinstance(final, Recipe):
            raise UserError(f"{given.experiment} is no recipe of several systems (--train-only)")
        for store in recipe.train_systems(final, out, given.train_only):
            print(store.folder)
    elif isinstance(final, Recipe):
        _whole(final, out)
    else:
        print(final.make(out).folder)


def _recipe_of(path: Path) -> Callable[[Path, Path | None], Any]:
    if not path.is_file():
        raise BadFileError(f"{path}: no such experiment; see the files in experiments/")
    specification = importlib.util.spec_from_file_location(path.stem, path)
    if specification is None or specification.loader is None:
        raise BadFileError(f"{path}: not a Python file")
    module = importlib.util.module_from_spec(specification)
    sys.modules[path.stem] = module
    specification.loader.exec_module(module)
    if not hasattr(module, "recipe"):
        raise BadFileError(f"{path}: defines no function recipe(data, weights)")
    return module.recipe


def _whole(chosen: Recipe, out: Path) -> None:
    made = recipe.make(chosen, out)
    results = recipe.judge_all(chosen, made)
    rows = summary.rows(made, results)
    source = recipe.opened(chosen, chosen.splits[-1])
    summary.write(out, rows, source.classes, recipe=chosen, versions=folders.versions())
    page = reporting.page(out / "report.html", chosen, made, rows, source)
    summary.show(rows)
    print(f"pseudo-masks: {made.masks.folder / 'masks'}")
    print(f"numbers:      {out / 'results.md'}")
    print(f"report:       {page}")
