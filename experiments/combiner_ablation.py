"""What each step, input and system of the combiner is worth, on the stores of a finished run.

Reads the class maps (cam_*), the saliency and the frozen features (features*) of a run folder that
a recipe made, and learns some twenty combiners from them, a minute or so each.

Command: python experiments/combiner_ablation.py RUN --data DATA/voc12_animals
    [--systems cam_a cam_b] [--features features_a features_b] [--no-saliency] [--out FOLDER]
    [--only cow sheep ...] [--score background cat ...] [--rows all "without the probe" ...]
The same command goes on where it was stopped. The table is FOLDER/ablation.md, by default
RUN/ablation; what it gave: benchmarks/ABLATION.md. Hardware: two CPU cores.
"""

import argparse
from pathlib import Path

from wsss_jax import xla
from wsss_jax.combiner.settings import Combining
from wsss_jax.config import lookup
from wsss_jax.data.stores import Store, open_store
from wsss_jax.datasets import views
from wsss_jax.datasets.table import open_dataset, open_together
from wsss_jax.stages.evaluate import Scoring
from wsss_jax.study import ablation
from wsss_jax.study.ablation import Study


def main() -> None:
    """Make the table."""
    parser = argparse.ArgumentParser(description="What each part of the combiner is worth.")
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--systems", nargs="+", default=[])
    parser.add_argument("--features", nargs="+", default=[])
    parser.add_argument("--no-saliency", action="store_true")
    parser.add_argument("--train", default="train")
    parser.add_argument("--val", default="val")
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--score", nargs="*", default=[])
    parser.add_argument("--rows", nargs="*", default=[])
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    xla.keep_compiled()
    out = chosen.out or chosen.run / "ablation"
    splits = {name: _source(chosen, name) for name in (chosen.val, chosen.train)}
    whole = views.only(open_together(chosen.data, (chosen.train, chosen.val)), tuple(chosen.only))
    systems = _found(chosen.run, chosen.systems, "cam_*")
    first = next(iter(systems.values()))
    noisy = ablation.noise_system(first, out / "noise", ids=whole.ids)
    features = _found(chosen.run, chosen.features, "features*")
    with_saliency = (chosen.run / "saliency").is_dir() and not chosen.no_saliency
    study = Study(
        whole,
        tuple(splits[chosen.train].ids),
        splits,
        {**systems, "noise": noisy},
        features,
        open_store(chosen.run / "saliency") if with_saliency else None,
        Scoring(classes=tuple(chosen.score) or None).on(whole),
    )
    settings = Combining(background=study.scoring.background)
    rows = ablation.standard(
        tuple(systems), tuple(features), settings, saliency=with_saliency, noise="noise"
    )
    for name in chosen.rows:
        lookup({row.name: row for row in rows}, name, "row")
    rows = tuple(row for row in rows if not chosen.rows or row.name in chosen.rows)
    ablation.run(rows, study, out)
    print(out / "ablation.md")


def _source(chosen: argparse.Namespace, split: str):
    return views.only(open_dataset(chosen.data, split=split), tuple(chosen.only))


def _found(run: Path, names: list[str], pattern: str) -> dict[str, Store]:
    chosen = names or [path.parent.name for path in sorted(run.glob(f"{pattern}/index.json"))]
    return {name: open_store(run / name) for name in chosen}


if __name__ == "__main__":
    main()
