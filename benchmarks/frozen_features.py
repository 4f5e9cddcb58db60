"""What frozen features tell of an image's classes: average precision of linear heads on means.

Command: python benchmarks/frozen_features.py STORE [STORE ...] --data DATA [--classes cat dog ...]
Each STORE is one of `wsss features` over train and val. A ridge regression learns the image labels
of train, and is judged by the average precision of each class on val, in percent: once on the mean
over all cells, once on the mean over the cells that the true masks call foreground. The second
column reads true masks. It asks whether a better pooling could help: where it is low, none can.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

PENALTY = 300.0
"""Of the ridge regression, on features of variance 1; ten times less or more changes little."""


def means(store: Any, source: Any) -> tuple[np.ndarray, np.ndarray]:
    """Mean features (n,k) over all cells of each image, and over its true foreground."""
    whole, objects = [], []
    for id in source.ids:
        scores = store.get_scores(id).scores
        height, width = scores.shape[:2]
        mask = source.mask(id)
        rows, columns = (
            np.arange(n) * m // n for n, m in zip((height, width), mask.shape, strict=True)
        )
        seen = mask[rows[:, None], columns[None]]
        there = (seen > 0) & (seen < 255)
        whole.append(scores.mean(axis=(0, 1)))
        objects.append(scores[there].mean(axis=0) if there.any() else whole[-1])
    return np.stack(whole), np.stack(objects)


def precision(labels: np.ndarray, scores: np.ndarray) -> float:
    """Average precision of one class over images."""
    ranked = labels[np.argsort(-scores, kind="stable")]
    found = np.cumsum(ranked)
    return float((found / np.arange(1, len(ranked) + 1))[ranked].mean())


def linear(train: np.ndarray, labels: np.ndarray, val: np.ndarray) -> np.ndarray:
    """Scores (n,c) of val by ridge regression on standardised features."""
    centre, scale = train.mean(axis=0), train.std(axis=0) + 1e-6
    x, target = (train - centre) / scale, labels - labels.mean(axis=0)
    weights = np.linalg.solve(x.T @ x + PENALTY * np.eye(x.shape[1]), x.T @ target)
    return (val - centre) / scale @ weights


def judge(store: Any, sources: Sequence[Any], chosen: Sequence[int]) -> list[list[float]]:
    """Average precision of each chosen class, on means of all cells and of true foreground."""
    labels = [np.stack([source.labels(id) for id in source.ids]) for source in sources]
    found = []
    for train, val in zip(*(means(store, source) for source in sources), strict=True):
        scores = linear(train, labels[0].astype(float), val)
        found.append([100 * precision(labels[1][:, c], scores[:, c]) for c in chosen])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stores", nargs="+", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--classes", nargs="*", default=None)
    given = parser.parse_args()

    from wsss_jax.data.stores import open_store
    from wsss_jax.datasets.table import open_dataset

    sources = [open_dataset(given.data, split=split) for split in ("train", "val")]
    names = sources[0].classes.names if given.classes is None else given.classes
    chosen = [sources[0].classes.index(name) for name in names]
    print(f"| features | mean over | {' | '.join(names)} | all |")
    print(f"|---|---|{'--:|' * (len(names) + 1)}")
    for folder in given.stores:
        rows = judge(open_store(folder), sources, chosen)
        for over, row in zip(("all cells", "true foreground"), rows, strict=True):
            cells = " | ".join(f"{value:.0f}" for value in [*row, float(np.mean(row))])
            print(f"| {folder.name} | {over} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
