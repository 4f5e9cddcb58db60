"""``wsss run``: from photographs and labels to masks, or the recipe of an experiment file."""

import importlib.util
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from wsss_jax.cli import ending, settings
from wsss_jax.cli.pages import HELP, HELP_ALL
from wsss_jax.errors import BadFileError, UserError
from wsss_jax.recipes import photographs, recipe, summary
from wsss_jax.recipes.recipe import Recipe
from wsss_jax.recipes.report import page as report_page
from wsss_jax.run import folders
from wsss_jax.train import parallel

EVERYDAY = "name splits train-split classes saliency fusions refinements systems.*.epochs gallery"
"""Settings of a recipe that ``--help`` shows."""


FLAGS = """wsss run {} --data DATA [--weights FOLDER] [--out OUT] [--train-only SYSTEM …]

  --data        folder of the data set
  --weights     folder of pretrained weights, where the experiment wants them
  --out         folder of everything that is made (default: runs/ and the name)
  --train-only  train and explain these systems and stop, so that several
                machines share them
"""
"""What the help of an experiment says of the flags that all experiments have."""


@dataclass(frozen=True)
class Run:
    """The whole recipe of an experiment file; further flags change its settings.

    Attributes:
        experiment: Python file with a function recipe(data, weights). It is executed: run only
            files that you trust.
        data: folder of the data set.
        weights: folder of pretrained weights, where the experiment wants them.
        out: folder of everything that is made, runs/<name> by default.
        train_only: train and explain these systems of the recipe and stop, so that several
            machines share them; the same command without it goes on from there.
    """

    experiment: tyro.conf.Positional[Path]
    data: Path
    weights: Path | None = None
    out: Path | None = None
    train_only: tuple[str, ...] = ()


def command(args: Sequence[str]) -> int:
    """Make masks of photographs (``recipes.photographs``), or the recipe of an experiment file.

    An experiment's file comes first; flags that ``Run`` does not know change its settings.
    """
    asked = {*HELP, *HELP_ALL} & set(args)
    if not args or args[0].startswith("-"):
        if asked:
            return settings.show("run", photographs.command, None)
        return ending.code_of(settings.call("run", photographs.command, args))
    first = [arg for arg in args if arg not in asked]
    if asked:  # which needs no data yet
        first += ["--data", ".", "--weights", "."]
    given, rest = tyro.cli(Run, prog="wsss run", args=first, return_unknown_args=True)
    made = recipe_of(given.experiment)(given.data, given.weights)
    if asked:
        print(FLAGS.format(given.experiment))
        everyday = None if asked & {*HELP_ALL} or not isinstance(made, Recipe) else EVERYDAY
        return settings.show(f"run {given.experiment}", type(made), everyday, made)
    prog = f"wsss run {given.experiment}"
    with warnings.catch_warnings():
        # Of a generic class tyro takes the type of the default, which is what is meant.
        warnings.filterwarnings("ignore", "Could not resolve type parameter")
        final = tyro.cli(type(made), default=made, prog=prog, args=rest)
    out = given.out or Path("runs") / final.name
    if given.train_only:
        if not isinstance(final, Recipe):
            raise UserError(f"{given.experiment} is no recipe of several systems (--train-only)")
        for store in recipe.train_systems(final, out, given.train_only):
            print(store.folder)
    elif isinstance(final, Recipe):
        make_whole(final, out)
    else:
        print(final.make(out).folder)
    return 0


def recipe_of(path: Path) -> Callable[[Path, Path | None], Any]:
    """The function ``recipe`` of a Python file. Raises BadFileError where there is none."""
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


def make_whole(chosen: Recipe, out: Path) -> None:
    """Make everything of a recipe into ``out``, judge it, and print where the results are."""
    made = recipe.make(chosen, out)
    if not parallel.is_first():
        return
    results = recipe.judge_all(chosen, made)
    rows = summary.rows(made.groups, results)
    source = recipe.opened(chosen, chosen.splits[-1])
    summary.write(out, rows, source.classes, recipe=chosen, versions=folders.versions())
    page = report_page(out / "report.html", chosen, made, rows, source)
    summary.show(rows)
    print(f"pseudo-masks: {made.masks.folder}")
    print(f"numbers:      {out / 'results.md'}")
    print(f"report:       {page}")
