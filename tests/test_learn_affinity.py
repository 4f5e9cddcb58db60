"""From labels to a run folder to a walk that knows more than colours; and what is refused."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage
from test_refine import CLASSES, Photographs, maps, store_of

from wsss_jax.batches.augment import Augmentation
from wsss_jax.data import stores
from wsss_jax.data.classes import EDGES
from wsss_jax.errors import BadFileError
from wsss_jax.run.training import Training
from wsss_jax.stages.affinity import learn_affinity, learned
from wsss_jax.stages.edges import Edges, edges
from wsss_jax.stages.parts.walks import Walk, walked
from wsss_jax.stages.refine import refine
from wsss_jax.systems.affinity import AffinityNet
from wsss_jax.train.optimizers import Optim
from wsss_jax.types import IGNORE

SIZE = (32, 44)
VIEW = Augmentation(
    crop=32, long_side=(44, 44), brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0
)
TRAINING = Training(
    AffinityNet(
        "boundary", "tiny", None, 8, radius=4, learns_body=True,
        optim=Optim("adamw", 1e-2, schedule="constant"),
    ),
    VIEW, epochs=30, batch_size=2, save_every=60, cache_megabytes=8,
)  # fmt: skip


def scene(left: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A bright box on a dark ground, its true mask, and labels that are unknown near its border."""
    rng = np.random.default_rng(left)
    image = rng.integers(0, 40, (*SIZE, 3), dtype=np.uint8)
    truth, labels = np.zeros(SIZE, np.uint8), np.zeros(SIZE, np.uint8)
    image[8:24, left : left + 20] += np.asarray([180, 120, 30], np.uint8)
    truth[8:24, left : left + 20] = 2
    labels[6:26, left - 2 : left + 22] = IGNORE
    labels[10:22, left + 2 : left + 18] = 2
    return image, truth, labels


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Four scenes, their labels, and a run that has learned from them."""
    folder = tmp_path_factory.mktemp("world")
    scenes = {f"s{left}": scene(left) for left in (4, 8, 12, 20)}
    source = Photographs({id: image for id, (image, _, _) in scenes.items()})
    labels = stores.create(folder / "labels", holds="masks", classes=CLASSES.names, made_by={})
    for id, (_, _, label) in scenes.items():
        labels.put_mask(id, label)
    run = learn_affinity(source, labels, TRAINING, folder / "run")
    return source, labels, run, {id: truth for id, (_, truth, _) in scenes.items()}


def partial_map(truth):
    """A quarter of the object, on the grid of four pixels."""
    grid = truth[2::4, 2::4] > 0
    seeds = np.zeros((*grid.shape, 1), np.float32)
    top, left = np.argwhere(grid).min(axis=0)
    seeds[top + 1 : top + 3, left + 1 : left + 3] = 1
    return maps(seeds, size=SIZE)


def iou(scores, truth):
    mask, grid = scores[..., 0] > 0.3, truth[2::4, 2::4] > 0
    return (mask & grid).sum() / (mask | grid).sum()


def test_the_walk_over_learned_affinity_repairs_partial_maps(world, tmp_path):
    source, _, run, truths = world
    store = store_of(tmp_path / "maps", {id: partial_map(t) for id, t in truths.items()})
    settings = Walk(affinity=run, radius=4, beta=8.0, steps=64)
    out = refine(store, source, tmp_path / "out", settings, ids=source.ids)
    before = [iou(store.get_scores(id).scores, truth) for id, truth in truths.items()]
    after = [iou(out.get_scores(id).scores, truth) for id, truth in truths.items()]
    assert np.mean(after) > np.mean(before) + 0.15, (before, after)
    assert out.get_scores("s4").scores.shape == (8, 11, 1) and out.kind == "activation"
    made_by = json.loads((tmp_path / "out/index.json").read_text())
    assert made_by["made_by"]["affinity"] == "run" and made_by["parents"] == ["maps", "run"]
    with pytest.raises(ValueError, match="affinity: 'run' -> None"):
        refine(store, source, tmp_path / "out", replace(settings, affinity=None), ids=())


def test_maps_of_any_grid_are_walked_on_that_of_the_network(world):
    source, _, run, _ = world
    settings = Walk(affinity=run, radius=4, beta=8.0, steps=64)
    for grid in ((32, 44), (3, 5)):
        found = walked(maps(np.ones((*grid, 1)), size=SIZE), source.image("s4"), settings)
        assert found.scores.shape == (8, 11, 1)
        assert np.isfinite(found.scores).all() and found.scores.max() > 0.99


def test_scores_are_taken_off_learned_boundaries_before_they_walk_or_not(world):
    source, _, run, _ = world
    even = maps(np.ones((8, 11, 1)), size=SIZE)
    as_irn = Walk(affinity=run, radius=4, beta=8.0, steps=0)
    thinned = walked(even, source.image("s4"), as_irn).scores
    assert thinned.max() > 0.99 and thinned.min() < 0.7
    left = walked(even, source.image("s4"), replace(as_irn, off_boundaries=False)).scores
    np.testing.assert_allclose(left, 1, atol=1e-4)


def test_learned_edges_lie_on_the_object_and_become_a_store(world, tmp_path):
    source, _, run, truths = world
    store = edges(run, source, tmp_path / "edges", Edges(beta=1.0), ids=("s4",))
    found = store.get_scores("s4").scores[..., 0]
    assert store.classes == EDGES and found.shape == (8, 11)
    assert 0 <= found.min() and found.max() <= 1
    cells = truths["s4"][2::4, 2::4] > 0
    middle = ndimage.binary_erosion(cells)
    rim = ndimage.binary_dilation(cells) & ~middle
    assert found[rim].mean() > found[middle].mean() + 0.1
    # A walk that knows no exponent goes along the sharper ones as another goes with exponent 3.
    sharp = edges(run, source, tmp_path / "sharp", Edges(beta=3.0), ids=("s4",))
    expected = 1 - (1 - found) ** 3
    np.testing.assert_allclose(sharp.get_scores("s4").scores[..., 0], expected, atol=2e-3)


def test_a_finished_run_stays_and_other_labels_are_refused(world, tmp_path):
    source, labels, run, _ = world
    stamp = (run / "finished").stat().st_mtime_ns
    assert learn_affinity(source, labels, TRAINING, run) == run
    assert (run / "finished").stat().st_mtime_ns == stamp
    lines = (run / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines]
    assert losses[-1] < 0.7 * losses[0]
    with pytest.raises(ValueError, match=r"epochs: 30 -> 3"):
        learn_affinity(source, labels, replace(TRAINING, epochs=3), run)
    other = stores.create(tmp_path / "other", holds="masks", classes=CLASSES.names, made_by={})
    with pytest.raises(ValueError, match="no masks of 4 of 4 images"):
        learn_affinity(source, other, TRAINING, tmp_path / "x")


def test_a_walk_over_no_run_is_refused_before_anything_is_made(tmp_path):
    store = store_of(tmp_path / "maps", {})
    settings = Walk(affinity=Path(tmp_path / "nowhere"))
    with pytest.raises(BadFileError, match="no finished run"):
        refine(store, Photographs({}), tmp_path / "out", settings, ids=())
    assert not (tmp_path / "out").exists()
    with pytest.raises(BadFileError):
        learned(tmp_path / "nowhere")
