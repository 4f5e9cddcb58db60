"""The published regularisers on 400 photographs of animals: one table, three seeds each.

Source: the recipes voc12_*.py, with MobileNetV2, crops of 256 and the same 3,200 images seen by
each; AdamW at 2e-4, as 200 steps of plain gradients at the papers' rates do not fit the sums of
their losses. Weights of terms, label smoothing and dropout are the papers'. P-OC and P-NOC judge
by the RandAugment classifier of the same seed, OC-CSE by the plain one. "puzzle_1" has a quarter of
Puzzle-CAM's weight, "puzzle_512" its crop. With --affinity, IRN's boundary branch is learned from
the class maps, which then walk along it twice: as IRN does, and without taking scores off the
boundaries before. P-NOC's dense CRF follows the latter, before a background at Otsu's threshold.
What is certain is read off the maps by Otsu's rule for three parts (--labels otsu): at
Puzzle-CAM's thresholds (0.40 and 0.10; --labels published) half of what is called foreground is
none, and walking gains nothing. --labels saliency takes P-NOC's rule, which asks a store of
saliency maps what may be foreground (wsss import DATA/voc12_animals/saliency_csnet … makes one).

Columns: mIoU at 0.3; at the threshold that Otsu's rule reads off the training scores, without a
mask; at the best threshold on the truth of the split itself.

Command: python experiments/voc12_animals_papers.py OUT --data DATA/voc12_animals --weights DIR
    [--systems vanilla puzzle] [--seeds 0 1 2] [--affinity [still stillcrf]]
    [--labels otsu|published|saliency] [--saliency STORE]
    [--workers 2] [--table]
The same command goes on where it was stopped; machines may share systems and seeds in one folder,
and --table alone prints what is there. Hardware: a GPU. Numbers: benchmarks/RESULTS.md.
"""

import argparse
import json
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from wsss_jax import xla
from wsss_jax.batches.augment import Augmentation
from wsss_jax.data.stores import Store, open_store
from wsss_jax.datasets.table import Source, open_dataset, open_together
from wsss_jax.recipes.affinity import light
from wsss_jax.run.executors import Workers
from wsss_jax.run.training import Training
from wsss_jax.stages.affinity import learn_affinity
from wsss_jax.stages.evaluate import Scoring, evaluate, write_results
from wsss_jax.stages.explain import Explanation, explain
from wsss_jax.stages.masks import label_free_threshold
from wsss_jax.stages.parts.affinity_labels import Irn, Pnoc, Rule, make_labels
from wsss_jax.stages.parts.walks import Walk
from wsss_jax.stages.refine import Crf, refine
from wsss_jax.stages.train import fit
from wsss_jax.systems import Classifier, Model, OcCse, PNoc, POc, PuzzleCam, Seam
from wsss_jax.systems.terms import Erasing, Puzzle
from wsss_jax.train.optimizers import Optim

SCORED = ("background", "cat", "cow", "dog", "horse", "sheep", "person")
NEVER = ("aeroplane",)
"""The one VOC class that none of the 600 photographs shows."""

V2 = "mobilenet_v2_1.0_224_quant_float.npz"
SPLITS = ("train", "val")
STEPS = {
    "cam": "",
    "colours": ", walk over colours",
    "walk": ", walk over affinity as in IRN",
    "still": ", walk over affinity, scores left on boundaries",
    "stillcrf": ", walk over affinity, scores left on boundaries, CRF",
}
"""What stores' names begin with."""

RULES: dict[str, tuple[Rule, str]] = {
    "otsu": (Irn(thresholds="otsu"), ""),
    "published": (Irn(0.40, 0.10), ", labels at 0.40 and 0.10"),
    "saliency": (Pnoc(), ", labels by P-NOC's rule"),
}
"""Where the affinity's labels come from, and what the table calls them."""

TAUGHT = ("walk", "still", "stillcrf")
"""The steps that follow from labels."""


def main() -> None:
    """Make what was asked for, then print the table of everything in the folder."""
    chosen = _arguments()
    xla.keep_compiled()
    if not chosen.table:
        for seed in chosen.seeds:
            for name in chosen.systems:
                one(name, seed, chosen)
    print(table(chosen.out))


def one(name: str, seed: int, chosen: argparse.Namespace) -> None:
    """Train, explain and judge one system, and walk along affinity where that is asked for."""
    source, teaching = open_together(chosen.data, SPLITS), open_dataset(chosen.data, split="train")
    runs = [name]
    training = training_of(name, seed, chosen.weights, chosen.out)
    if isinstance(training.model, OcCse | POc | PNoc):
        runs = ["vanilla" if name == "occse" else "randaugment", name]
    for each in runs:
        training = training_of(each, seed, chosen.weights, chosen.out)
        run = fit(teaching, training, chosen.out / f"run_{each}_{seed}", imageless=NEVER)
    maps = explain(run, source, chosen.out / f"cam_{name}_{seed}", Explanation(), ids=source.ids)
    judged(maps, chosen)
    if chosen.affinity is not None:
        refine_all(maps, source, chosen)


def refine_all(maps: Store, source: Source, chosen: argparse.Namespace) -> None:
    """IRN's boundary branch from class maps; walks, and a CRF."""
    out, plain = chosen.out, maps.folder.name.removeprefix("cam")
    stem = f"{_tag(chosen.labels)}{plain}"
    workers, teaching = Workers(chosen.workers), open_dataset(chosen.data, split="train")
    labels = make_labels(
        maps,
        teaching,
        out / f"labels{stem}",
        RULES[chosen.labels][0],
        ids=teaching.ids,
        saliency=None if chosen.saliency is None else open_store(chosen.saliency),
        workers=workers,
    )
    run = learn_affinity(teaching, labels, light(chosen.weights / V2), out / f"affinity{stem}")
    along = Walk(run, beta=10.0, steps=256)
    still = replace(along, off_boundaries=False)
    crf = Crf("pnoc_masks", background="otsu", certainty=0.9)
    every = {"colours": Walk(), "walk": along, "still": still, "stillcrf": crf}
    wanted = {*(chosen.affinity or every)}
    wanted |= {"still"} if "stillcrf" in wanted else set()  # which it starts from
    for step, settings in every.items():
        if step in wanted:
            start = open_store(out / f"still{stem}") if step == "stillcrf" else maps
            folder = out / f"{step}{stem if step in TAUGHT else plain}"
            refined = refine(start, source, folder, settings, ids=source.ids, workers=workers)
            judged(refined, chosen)


def judged(maps: Store, chosen: argparse.Namespace) -> None:
    """Score maps on both splits, into results_<store>.json; once."""
    path = chosen.out / f"results_{maps.folder.name}.json"
    if path.is_file():
        return
    scoring, workers = Scoring(classes=SCORED), Workers(chosen.workers)
    sources = {split: open_dataset(chosen.data, split=split) for split in SPLITS}
    otsu = label_free_threshold(maps, sources["train"].ids)
    results = [
        evaluate(maps, source, scoring, split=split, otsu=otsu, workers=workers)
        for split, source in sources.items()
    ]
    write_results(path, results, sources["train"].classes)


def training_of(name: str, seed: int, weights: Path, out: Path) -> Training[Model]:
    """One system's settings."""
    optim = Optim("adamw", learning_rate=2e-4, warm_up=10)
    plain = Classifier("mobilenet_v2", weights / V2, optim=optim)
    smooth = replace(plain, label_smoothing=0.1)
    view = Augmentation(crop=256, long_side=(320, 576), hue=0.0)
    vanilla, randaugment = out / f"run_vanilla_{seed}", out / f"run_randaugment_{seed}"
    models: dict[str, Callable[[], Model]] = {
        "vanilla": lambda: plain,
        "randaugment": lambda: smooth,
        "kernel_usage": lambda: replace(plain, head="kernel_usage"),
        "kernel_usage_scaled": lambda: replace(plain, head="kernel_usage_scaled"),
        "puzzle": lambda: PuzzleCam(plain),
        "puzzle_1": lambda: PuzzleCam(plain, Puzzle(weight=1.0)),
        "puzzle_512": lambda: PuzzleCam(plain),
        "occse": lambda: OcCse(plain, Erasing(vanilla, stages=8)),
        "poc": lambda: POc(plain, Erasing(randaugment)),
        "poc_1": lambda: POc(plain, Erasing(randaugment), Puzzle(weight=1.0)),
        "pnoc": lambda: PNoc(smooth, Erasing(randaugment)),
        "pnoc_1": lambda: PNoc(smooth, Erasing(randaugment), Puzzle(weight=1.0)),
        "seam": lambda: Seam(replace(plain, dropout=0.5)),
    }
    if name not in models:
        raise SystemExit(f"error: no system {name}; there are {', '.join(models)}")
    view = replace(view, operations=2) if name == "randaugment" else view
    view = replace(view, crop=512, long_side=(320, 640)) if name == "puzzle_512" else view
    return Training(models[name](), view, seed=seed)


def _tag(rule: str) -> str:
    """What the rule adds to the names of stores that follow from it; nothing for the usual one."""
    return "" if rule == "otsu" else f"-{rule}"


_DONE = STEPS | {
    f"{step}{_tag(rule)}": f"{STEPS[step]}{labels}"
    for step in TAUGHT
    for rule, (_, labels) in RULES.items()
}


def table(out: Path) -> str:
    """Everything in the folder as Markdown: means over seeds, and the spread of several."""
    rows: dict[str, dict[str, list[float]]] = {}
    for path in sorted(out.glob("results_*.json")):
        start, _, stem = path.stem.removeprefix("results_").partition("_")
        if start not in _DONE:
            continue
        name = f"{stem.rpartition('_')[0]}{_DONE[start]}"
        record = json.loads(path.read_text())
        for result in record["results"]:
            for column in _COLUMNS:
                value = result.get(column, result["fixed"])["miou"]  # of a CRF, half is the rule
                found = rows.setdefault(name, {})
                found.setdefault(f"{result['split']} {column}", []).append(value)
    head = "| system | seeds | " + " | ".join(f"{s} {c}" for s in SPLITS for c in _COLUMNS) + " |"
    lines = [head, "|---|--:|" + "--:|" * (len(SPLITS) * len(_COLUMNS))]
    for name in sorted(rows):
        cells = [_cell(rows[name].get(f"{s} {c}", [])) for s in SPLITS for c in _COLUMNS]
        seeds = max(len(values) for values in rows[name].values())
        lines.append(f"| {name} | {seeds} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


_COLUMNS = ("fixed", "otsu", "tuned")


def _cell(values: list[float]) -> str:
    if not values:
        return ""
    mean = f"{100 * statistics.mean(values):.1f}"
    return mean if len(values) < 2 else f"{mean} ± {100 * statistics.stdev(values):.1f}"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Published systems on voc12_animals.")
    parser.add_argument("out", type=Path, help="folder of everything that is made")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--systems", nargs="+", default=["vanilla"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument(
        "--affinity",
        nargs="*",
        choices=[step for step in STEPS if step != "cam"],
        help="learn affinity, and take these steps with it; all by default",
    )
    parser.add_argument("--labels", choices=RULES, default="otsu", help="what the affinity learns")
    parser.add_argument("--saliency", type=Path, help="store that --labels saliency asks")
    parser.add_argument("--workers", type=int, default=1, help="processes of per-image stages")
    parser.add_argument("--table", action="store_true", help="print the table and stop")
    chosen = parser.parse_args()
    if (chosen.labels == "saliency") != (chosen.saliency is not None):
        parser.error("--labels saliency and --saliency STORE go together")
    return chosen


if __name__ == "__main__":
    main()
