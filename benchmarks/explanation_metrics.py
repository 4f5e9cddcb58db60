"""Every explanation method of a trained run on one split: faithfulness, place, perturbation.

Command: python benchmarks/explanation_metrics.py RUN --data DATA [--split val] [--methods cam …]
The run is any that `wsss train` made. Photographs are stretched to one square. Methods that ask the
network for every channel or mask are judged on the first photographs only, as the second column
says; RISE draws 200 masks here and SS-CAM one noise per channel, far fewer than their papers.
Numbers are percent; `wins` is how often the drop is below Grad-CAM's. With `--others` only the
photographs of several labels are judged, and one where a class is detected alone says nothing of
the others.
"""

import argparse
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from wsss_jax.datasets.table import Source, open_dataset
from wsss_jax.explain import perturb, score_weighted
from wsss_jax.explain.contract import seeded
from wsss_jax.stages.parts.subject import Method, Subject, subject_of
from wsss_jax.study import judge_maps

SLOW = {
    "score_cam": 10,
    "ss_cam": 2,
    "rise": 10,
    "augmented_grad_cam": 10,
    "smooth_grad": 40,
    "integrated_gradients": 40,
}
"""Photographs for methods that ask the network hundreds of times."""


def methods_of(asked: Subject) -> Mapping[str, Method]:
    """The network's methods, RISE and SS-CAM with few draws."""
    few = {
        "rise": asked.wrapped(seeded(partial(perturb.rise, masks=200))),
        "ss_cam": asked.wrapped(seeded(partial(score_weighted.ss_cam, draws=1))),
    }
    return {name: few.get(name, method) for name, method in asked.methods.items()}


def chosen(source: Source, given: argparse.Namespace) -> tuple[str, ...]:
    """The first photographs of the split, or of those that show two classes or more."""
    ids = (id for id in source.ids if not given.others or source.labels(id).sum() > 1)
    return tuple(ids)[: given.photographs or None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--split", default="val")
    parser.add_argument("--methods", nargs="+", default=None)
    parser.add_argument("--side", type=int, default=160)
    parser.add_argument("--photographs", type=int, default=0)
    parser.add_argument("--curves", type=int, default=20)
    parser.add_argument("--others", action="store_true")
    given = parser.parse_args()
    asked = subject_of(given.run)
    source = open_dataset(given.data, split=given.split)
    methods = methods_of(asked)
    if given.methods:
        methods = {name: methods[name] for name in given.methods}
    settings = judge_maps.Judging(
        side=given.side,
        few={name: count for name, count in SLOW.items() if name in methods},
        curves=given.curves,
        alone=float("nan") if given.others else 0.0,
    )
    cards = []
    for card in judge_maps.judge(asked, source, methods, settings, ids=chosen(source, given)):
        cards.append(card)
        # One by one, so that a run that is stopped has said what it knew.
        numbers = (f"{name} {100 * value:.1f}" for name, value in card.numbers.items())
        print(f"{card.method}, {card.photographs} photographs: {', '.join(numbers)}", flush=True)
    for columns in (judge_maps.FAITHFUL, judge_maps.PLACED, judge_maps.CURVES):
        print(judge_maps.table(cards, columns), end="\n\n")
    best = cards[0]
    print(f"top class among the labels, nothing removed: {best.numbers['accuracy_at_0']:.1%}")
    print(f"perturbation curves: the first {best.curves} photographs")
    if "grad_cam" in methods:
        found = judge_maps.wins(cards, "grad_cam")
        print("wins over grad_cam:", ", ".join(f"{name} {won:.0%}" for name, won in found.items()))
    costs = (f"{card.method} {card.seconds / card.photographs:.2f}" for card in cards)
    print("processor seconds per photograph:", ", ".join(costs))


if __name__ == "__main__":
    main()
