"""A box for each class: its numbers by hand, its head, and a run that is trained and judged."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from wsss_jax.batches.augment import Augmentation, augment
from wsss_jax.cli import main
from wsss_jax.datasets import boxes, synthetic
from wsss_jax.datasets.boxes import Boxes
from wsss_jax.datasets.table import open_dataset
from wsss_jax.errors import UserError
from wsss_jax.losses import box_regression
from wsss_jax.models import heads
from wsss_jax.models.box_head import BoxHead
from wsss_jax.ops.components import Box
from wsss_jax.run.training import Training
from wsss_jax.stages.boxes import Found, Success, find, judge
from wsss_jax.stages.train import fit
from wsss_jax.systems import BoxRegression, Classifier
from wsss_jax.types import Sample

OWN = Classifier("tiny", None, 8)


def test_corners_and_centres_turn_into_one_another_and_losses_are_those_by_hand():
    given = jnp.array([[[0.0, 0.2, 0.5, 0.6], [0.0, 0.0, 0.0, 0.0]]])
    centred = box_regression.centred(given)
    np.testing.assert_allclose(centred[0, 0], [0.4, 0.25, 0.5, 0.4], rtol=1e-6)
    np.testing.assert_allclose(box_regression.corners(centred), given, atol=1e-7)
    found = centred + jnp.array([[[0.5, 0.0, 0.05, 0.0]]])  # the second class has no box to miss
    squared, robust = (
        box_regression.mean_loss(found, given, box_regression.REGRESSIONS[name])
        for name in ("squared", "smooth_l1")
    )
    np.testing.assert_allclose(squared, 0.5**2 + 0.05**2, rtol=1e-5)
    np.testing.assert_allclose(robust, 0.5 - 1 / 18 + 4.5 * 0.05**2, rtol=1e-5)
    assert box_regression.mean_loss(found, given * 0, jnp.square) == 0


class Cells(nnx.Module):
    """A backbone whose features are the images' own cells of eight pixels."""

    strides, channels, lean = (8,), (3,), 0.5
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)

    def __call__(self, images, *, inside=None, rngs=None):
        return (images[:, ::8, ::8],)


def test_a_head_places_a_box_where_its_map_lies_wherever_the_image_does():
    head = BoxHead(heads.Classifier(Cells(), 2, rngs=nnx.Rngs(0)), key=jax.random.key(0))
    head.kernel[...] = jnp.zeros((3, 2)).at[0, 0].set(50.0)
    # Cells of 8 pixels; class 0 is seen in two rows and four columns, class 1 evenly.
    features = np.zeros((2, 8, 8, 3), np.float32)
    features[0, 1:3, 0:4, 0] = features[1, 3:5, 4:8, 0] = 1
    inside = np.zeros((2, 64, 64), bool)
    inside[0, :32, :32] = inside[1, 16:48, 32:] = True
    found = head.boxes(jnp.asarray(features), jnp.asarray(inside))
    np.testing.assert_allclose(found[0], found[1], atol=1e-5)
    np.testing.assert_allclose(found[0, :, :2], 0.5, atol=1e-3)
    widths = 12**0.5 * np.sqrt(np.array([1 / 64, 5 / 64, 5 / 64]) + 1e-4)
    np.testing.assert_allclose([found[0, 0, 2], found[0, 0, 3], found[0, 1, 2]], widths, rtol=1e-4)
    grads = jax.grad(lambda x: head.boxes(x, jnp.asarray(inside)).sum())(jnp.asarray(features))
    assert np.isfinite(grads).all() and grads.any()


def test_boxes_follow_mirroring_and_cropping():
    image = np.zeros((20, 40, 3), np.uint8)
    image[5:10, 10:20] = 255
    given = np.array([[0.25, 0.25, 0.5, 0.5], [0, 0, 0, 0]], np.float32)
    still = dict.fromkeys(("brightness", "contrast", "saturation", "hue"), 0.0)
    seen = set()
    for seed in range(20):
        settings = Augmentation(crop=24, long_side=(40, 40), flip=float(seed % 2), **still)
        sample = Sample("a", image, np.array([True, False]), boxes=given)
        view = augment(sample, settings, np.random.default_rng(seed))
        rows, columns = np.nonzero(view.inside)
        shown = view.image[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1, 0] > 0
        assert not view.boxes[1].any()
        seen.add(bool(view.boxes[0].any()))
        if view.boxes[0].any():
            lit = np.nonzero(shown)
            wanted = (lit[0].min(), lit[1].min(), lit[0].max() + 1, lit[1].max() + 1)
            pixels = view.boxes[0] * [*shown.shape, *shown.shape]
            np.testing.assert_allclose(pixels, wanted, atol=1e-4)
        else:
            assert shown.sum() < 25
    assert seen == {True, False}
    with pytest.raises(UserError, match="operations"):
        augment(sample, Augmentation(operations=2), np.random.default_rng(0))


def test_the_largest_box_of_a_class_fills_its_slot():
    found = Boxes(("b", "x", "b"), np.array([[0, 0, 0.1, 0.1], [0, 0, 1, 1], [0, 0, 0.5, 0.5]]))
    wanted = [[0, 0, 0, 0], [0, 0, 0.5, 0.5]]
    np.testing.assert_array_equal(boxes.largest(found, ("a", "b")), wanted)
    assert not boxes.largest(None, ("a",)).any()


def test_success_by_hand():
    right, wrong = Box(0, 0, 10, 20), Box(0, 0, 10, 9)
    found = {
        "one": Found({"a": right}, "b", (10, 40)),
        "two": Found({"a": wrong, "b": right}, "a", (10, 40)),
        "none": Found({}, "a", (10, 40)),
    }
    half = np.array([[0, 0, 1, 0.5]])
    true = {"one": Boxes(("a",), half), "two": Boxes(("a", "b", "b"), np.repeat(half, 3, axis=0))}
    assert judge(found, true.get) == Success(single=1, placed=1, named=0, shown=3, hit=2)


def test_a_run_learns_boxes_writes_them_and_is_judged(tmp_path, capsys):
    scenes = synthetic.Scenes(size=40)
    data = synthetic.write(tmp_path / "scenes", 24, 0, settings=scenes)
    source = open_dataset(data, split="all")
    view = Augmentation(crop=40, long_side=(32, 40), hue=0.0)
    training = Training(BoxRegression(OWN), view, epochs=1, batch_size=12)
    with pytest.raises(UserError, match="has no boxes"):
        fit(source, training, tmp_path / "run")
    read = boxes.around_masks(source, source.ids)
    run = fit(source, training, tmp_path / "run", boxes=read)
    found = find(run, source, tmp_path / "found", ids=source.ids)
    assert judge(found, read).shown == sum(source.labels(id).sum() for id in source.ids)
    # What is found is read again as the boxes of a data set, which every found box then hits.
    (data / "boxes.csv").write_bytes((tmp_path / "found" / "boxes.csv").read_bytes())
    main(["boxes", str(run), "--data", str(data), "--out", str(tmp_path / "again")])
    assert "100.0 %" in capsys.readouterr().out
    plain = Training(OWN, view, epochs=1, batch_size=12)
    other = fit(source, plain, tmp_path / "plain")
    with pytest.raises(UserError, match="has no box head"):
        find(other, source, tmp_path / "found", ids=source.ids)
