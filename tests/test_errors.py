"""Where a combination errs: counts, sizes, bounds and calibration by hand."""

import numpy as np
import pytest

from wsss_jax.data import stores
from wsss_jax.data.classes import difference
from wsss_jax.errors import BadFileError, first_few
from wsss_jax.ops import metrics
from wsss_jax.stages.evaluate import Scoring
from wsss_jax.study import error_counts, fusion_world, world
from wsss_jax.types import ScoreMaps

WORLD = fusion_world.make(4, seed=32, size=24)


def test_the_truth_errs_nowhere_and_the_bounds_are_what_any_or_the_best_system_knows(tmp_path):
    inputs = world.write(WORLD, tmp_path)
    source, systems = inputs.source, inputs.systems[:2]
    right = stores.create(
        tmp_path / "right", holds="scores", classes=source.classes.names, made_by={},
        kind="probability",
    )  # fmt: skip
    for id in source.ids[:3]:  # the fourth is in no combination: it counts for none
        truth, classes = source.mask(id), np.flatnonzero(source.labels(id)).astype(np.int32)
        known = np.where(truth == 255, 0, truth)
        sure = (known[..., None] == classes + 1).astype(np.float32)
        right.put_scores(id, ScoreMaps(sure, classes, truth.shape, sure.max((0, 1)), "probability"))
    found = error_counts.survey(systems, right, source, Scoring(), split="all")
    assert found.names == (systems[0].folder.name, systems[1].folder.name, "right")
    assert found.counts.shape[:2] == (3, 3) and found.calibration_error() == 0
    occurring = found.counts[-1].sum(axis=(0, 2)) > 0
    assert (found.per_class()[-1][occurring] == 1).all()
    sizes = [(source.mask(id)[source.mask(id) != 255] > 0).mean() for id in source.ids[:3]]
    assert [sum(share >= border for border in error_counts.SIZES) for share in sizes] == list(
        found.size
    )
    accuracy = metrics.pixel_accuracy
    each = accuracy(found.counts[:-1])
    assert accuracy(found.best_pixel) > each.mean(axis=1).max()  # as each errs elsewhere
    picked = metrics.mean_iou(found.counts[:-1]).argmax(axis=0)
    wanted = sum(found.counts[system, image] for image, system in enumerate(picked))
    np.testing.assert_array_equal(found.best_system, wanted)


def test_calibration_by_hand_and_what_cannot_be_surveyed(tmp_path):
    believed = np.zeros((error_counts.BINS, 3))
    believed[2] = (30, 7.5, 3)  # a quarter by belief, a tenth in truth
    believed[9] = (10, 9.5, 9.5)
    nothing = np.zeros((2, 2), int)
    found = error_counts.Errors(
        (), (), nothing[None, None], nothing, nothing, nothing[0, :1], believed, (0,)
    )
    assert found.calibration_error() == pytest.approx(30 / 40 * 0.15)
    inputs = world.write(WORLD, tmp_path)
    with pytest.raises(ValueError, match="name the systems"):
        error_counts.survey((), inputs.systems[0], inputs.source, Scoring(), split="all")
    empty = stores.create(
        tmp_path / "no", holds="scores", classes=inputs.source.classes.names, made_by={}
    )
    with pytest.raises(BadFileError, match="all of 2 stores"):
        error_counts.survey(inputs.systems[:1], empty, inputs.source, Scoring(), split="all")


def test_messages_name_the_first_and_count_the_others():
    assert first_few("abc") == "a, b, c" and first_few([]) == "none"
    assert first_few(range(5)) == "0, 1, 2 and 2 more" and len(first_few(["x" * 999])) == 80
    assert difference(("cat", "dog"), ("cat", "cow")) == "dog as class 2, the data set has cow"
    assert difference(("cat",), ("cat", "cow")) == "1 class(es), the data set has 2"
