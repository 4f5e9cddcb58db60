"""What the combiner lives on, on photographs: the tables of notebooks/combiner_inputs.py.

Reads the stores of a finished run (cam_* and the cues) and learns some fifty combiners from them.
To be bearable on two cores, each is learned on a coarser grid and for less long than that of the
run (48 cells and 4 + 6 epochs, there 64 and 4 + 12): the tables rank inputs and steps, their
numbers are not those of the full combiner, which are in the run's results.md. See first that the
row "all" is above the closed forms: with too few steps everything becomes background.

Command: python experiments/combiner_ablation.py RUN --data DATA/voc12_animals
    [--tables "Systems: one out"] [--rows all "without image"] [--seeds 0 1 2] [--out FOLDER]
    [--only cow sheep ...]  (a run with Recipe.classes; without it the seven animals' classes count)
The same command goes on where it was stopped; the tables are in FOLDER/ablation.md and .png, by
default RUN/ablation. Hardware: two CPU cores; time and numbers: see benchmarks/RESULTS.md.
"""

import argparse
from pathlib import Path

from wsss_jax import xla
from wsss_jax.combiner.combiner_run import Combining
from wsss_jax.combiner.label_free import Protocol
from wsss_jax.data import views
from wsss_jax.data.datasets import open_dataset, open_together
from wsss_jax.data.stores import open_store
from wsss_jax.errors import BadFileError
from wsss_jax.run.executors import Workers
from wsss_jax.stages.evaluate import Scoring
from wsss_jax.study import ablation, ablation_tables
from wsss_jax.study.ablation import CUES, Study, Table

SCORED = ("background", "cat", "cow", "dog", "horse", "sheep", "person")


def main() -> None:
    """Make the tables that were asked for."""
    chosen = _arguments()
    xla.keep_compiled()
    study, tables = prepared(chosen)
    if chosen.list:
        for table in tables:
            print(f"{table.title}\n" + "".join(f'    "{row.name}"\n' for row in table.rows), end="")
        return
    ablation.run(tables, study, chosen.out or chosen.run / "ablation", chosen=chosen.tables)
    print((chosen.out or chosen.run / "ablation") / "ablation.md")


def prepared(chosen: argparse.Namespace) -> tuple[Study, tuple[Table, ...]]:
    """The run's stores as a study, and its tables."""
    source = views.only(open_together(chosen.data, (chosen.train, chosen.val)), chosen.only)
    judged = views.only(open_dataset(chosen.data, split=chosen.val), chosen.only)
    taught = open_dataset(chosen.data, split=chosen.train).ids
    names = chosen.systems or [path.name for path in sorted(chosen.run.glob("cam_*"))]
    stores = {name: open_store(chosen.run / name) for name in names}
    if len(stores) < 2:
        raise BadFileError(f"{chosen.run}: {len(stores)} store cam_*; wanted at least two systems")
    cues = {
        n: open_store(chosen.run / n) for n in CUES if (chosen.run / n / "index.json").is_file()
    }
    out = chosen.out or chosen.run / "ablation"
    victim = chosen.victim or names[0]
    systems = ablation_tables.with_distorted(
        stores, victim, out / "changed", ids=(*taught, *judged.ids)
    )
    settings = Combining(
        Protocol(students=3 if len(names) < 4 else 4),
        epochs=chosen.epochs,
        distil_epochs=chosen.distil,
        cells=chosen.cells,
    )
    study = Study(
        source,
        taught,
        judged,
        systems,
        cues,
        Scoring(classes=None if chosen.only else SCORED).on(judged),
        seeds=tuple(chosen.seeds),
        workers=Workers(chosen.workers),
    )
    tables = ablation_tables.standard(settings, names, cues=tuple(cues), victim=victim)
    return study, ablation.part(tables, chosen.rows) if chosen.rows else tables


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Ablation of the combiner on a finished run.")
    parser.add_argument("run", type=Path, help="folder of the run, with stores cam_*")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--train", default="train", help="the split that teaches")
    parser.add_argument("--val", default="val", help="the split that judges")
    parser.add_argument("--only", nargs="+", default=(), help="classes to keep, all of which count")
    parser.add_argument("--systems", nargs="*", help="stores, in this order; default all cam_*")
    parser.add_argument("--victim", help="the system that is distorted; default the first")
    parser.add_argument("--tables", nargs="*", default=(), help="titles; default all")
    parser.add_argument("--rows", nargs="*", default=(), help="names of rows; default all")
    parser.add_argument("--list", action="store_true", help="print titles and rows, and stop")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--cells", type=int, default=48, help="long side of the grid")
    parser.add_argument("--epochs", type=int, default=4, help="of the students")
    parser.add_argument("--distil", type=int, default=6, help="epochs of the distilled network")
    parser.add_argument("--workers", type=int, default=1, help="processes that judge")
    parser.add_argument("--out", type=Path, help="default RUN/ablation")
    return parser.parse_args()


if __name__ == "__main__":
    main()
