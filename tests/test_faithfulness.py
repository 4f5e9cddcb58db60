"""Faithfulness and place of maps, and image labels: numbers by hand, and slow versions of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_metrics import slow_average_precision
from toy_scorers import net_t, photos, t_image

from wsss_jax.explain import faithfulness as seeing
from wsss_jax.explain import logits_of, normalise
from wsss_jax.ops import faithfulness, localisation, metrics
from wsss_jax.ops.components import Box
from wsss_jax.types import IGNORE

# Two images, two classes; what is detected: both classes of the first, the first of the second.
SEEN = faithfulness.Seen(
    label=np.array([0, 1, 0]),
    clean=np.array([[0.8, 0.6], [0.8, 0.6], [0.9, 0.2]]),
    kept=np.array([[0.4, 0.3], [0.4, 0.9], [0.95, 0.1]]),
    removed=np.array([[0.2, 0.6], [0.8, 0.15], [0.45, 0.2]]),
    others=np.array([[False, True], [True, False], [False, False]]),
)
MAP = np.array([[0, 0.2, 0.1, 0], [0.2, 1, 0.8, 0], [0.1, 0.9, 0.6, 0.5], [0, 0, 0.3, 0]])
REGION = np.zeros((4, 4), bool)
REGION[1:3, 1:3] = True


@pytest.mark.parametrize(
    ("mean", "wanted"),
    [
        (faithfulness.micro, (66.667, 16.667, 66.667, 33.333, 0)),
        (faithfulness.macro, (75, 12.5, 68.75, 37.5, 0)),
    ],
)
def test_the_five_measures_by_hand(mean, wanted):
    found = faithfulness.summary(SEEN, mean=mean)
    names = ("increase", "drop", "retention", "drop_of_others", "retention_of_others")
    np.testing.assert_allclose([100 * found[name] for name in names], wanted, atol=1e-3)


def test_images_of_one_class_can_be_left_out_of_the_others():
    alone = float("nan")
    values = faithfulness.drop_of_others(SEEN, alone=alone)
    np.testing.assert_allclose(values, [0.5, 0.5, np.nan])
    assert faithfulness.micro(values, SEEN.label) == pytest.approx(0.5)
    counted = faithfulness.summary(SEEN, mean=faithfulness.micro)
    left_out = faithfulness.summary(SEEN, mean=faithfulness.micro, alone=alone)
    assert counted["drop_of_others"] == pytest.approx(1 / 3)
    assert left_out["drop_of_others"] == pytest.approx(1 / 2)


def test_combined_scores_are_harmonic_means():
    found = faithfulness.summary(SEEN)
    assert found["keeps"] == pytest.approx(2 * 0.6875 * 0.375 / (0.6875 + 0.375))
    assert found["misses"] == 0.0
    assert faithfulness.f_beta(0.5, 0.25, beta=2.0) == pytest.approx(5 * 0.125 / (2 + 0.25))


def test_rows_are_the_chosen_classes_of_all_images():
    clean = np.array([[0.8, 0.6], [0.9, 0.2]])
    kept = np.array([[[0.4, 0.3], [0.4, 0.9]], [[0.95, 0.1], [0, 0]]])
    removed = np.array([[[0.2, 0.6], [0.8, 0.15]], [[0.45, 0.2], [0, 0]]])
    rows = faithfulness.rows_of(clean, kept, removed, clean > 0.5)
    for name in ("label", "clean", "kept", "removed", "others"):
        np.testing.assert_array_equal(getattr(rows, name), getattr(SEEN, name))
    twice = faithfulness.together([rows, rows])
    assert faithfulness.summary(twice) == faithfulness.summary(SEEN)


def test_a_row_does_not_rise_and_drop_at_once():
    random = np.random.default_rng(0)
    values = random.random((3, 50, 4))
    rows = faithfulness.Seen(random.integers(0, 4, 50), *values, np.zeros((50, 4), bool))
    both = faithfulness.increase(rows) * faithfulness.drop(rows)
    assert not both.any() and faithfulness.drop(rows).max() > 0


def test_logits_are_refused():
    with pytest.raises(ValueError, match="sigmoid"):
        faithfulness.Seen(np.array([0]), *np.full((3, 1, 1), 2.5), np.zeros((1, 1), bool))


def test_a_tie_wins_nothing():
    assert faithfulness.win(np.array([0.1, 0.2, 0.5]), np.array([0.2, 0.2, 0.4])) == 1 / 3
    with pytest.raises(ValueError, match="same rows"):
        faithfulness.win(np.zeros(2), np.zeros(3))


def test_areas_under_perturbation_curves():
    accuracy = np.array([0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.1, 0.1])
    assert 100 * faithfulness.published_area(accuracy) == pytest.approx(33.5)
    assert faithfulness.published_area(accuracy) == pytest.approx(np.trapezoid(accuracy, dx=0.1))
    assert 100 * faithfulness.mean_area(accuracy) == pytest.approx(37.222, abs=1e-3)
    with pytest.raises(ValueError, match=r"0, 0\.1"):
        faithfulness.published_area(accuracy[:5])


# Where a map lies.


def test_place_by_hand():
    assert localisation.loc(MAP, REGION, 0.25) == pytest.approx(4 / 6)
    assert localisation.loc(MAP, REGION, 0.5) == pytest.approx(0.8)
    assert localisation.proportion(MAP, REGION) == pytest.approx(0.702128, abs=1e-6)
    box = Box(1, 1, 4, 4)
    assert not localisation.hits_a_box(MAP, [Box(1, 1, 3, 3)])  # 4 of 9 pixels
    assert localisation.hits_a_box(MAP, [Box(0, 0, 1, 1), box])
    assert localisation.hits_a_box(MAP, [Box(1, 1, 3, 3)], least=4 / 9)


def test_a_map_of_nothing_finds_nothing():
    for value in (-1.0, 0.0, 2.0):
        blank = np.full((4, 4), value)
        assert localisation.loc(blank, REGION, 0.5) == 0.0
        assert localisation.proportion(blank, REGION) == 0.0
    assert not localisation.hits_a_box(np.zeros((4, 4)), [Box(1, 1, 3, 3)])
    assert localisation.proportion(MAP, np.zeros((4, 4), bool)) == 0.0
    with pytest.raises(ValueError, match="above 0"):
        localisation.loc(MAP, REGION, 0.0)


def test_corners_join_the_parts_of_a_region():
    region = np.zeros((5, 6), bool)
    region[0, 0] = region[1, 1] = region[3:5, 4] = True
    assert localisation.regions_boxes(region) == (Box(0, 0, 2, 2), Box(3, 4, 5, 5))
    assert localisation.regions_boxes(np.zeros((2, 2), bool)) == ()


def test_binary_segmentation_by_hand():
    truth = np.array([[1, 0, 0], [0, 1, 1]], np.uint8)
    scores = np.array([[0.9, 0.8, 0], [0.1, 0.2, 0.7]])  # above its mean: 1 1 0, 0 0 1
    counts = localisation.foreground_counts(scores, truth)
    np.testing.assert_array_equal(counts, [[2, 1], [1, 2]])
    assert metrics.pixel_accuracy(counts) == pytest.approx(2 / 3)
    assert metrics.mean_iou(counts) == pytest.approx(0.5)
    assert localisation.foreground_f1(counts) == pytest.approx(2 / 3)


def test_average_precision_ranks_object_and_rest_together():
    random = np.random.default_rng(3)
    scores = random.integers(0, 5, (6, 5)) / 4
    truth = random.choice([0, 1, IGNORE], (6, 5)).astype(np.uint8)
    judged = truth != IGNORE
    unit, wanted = scores[judged], truth[judged] == 1
    ranked, positive = np.concatenate([1 - unit, unit]), np.concatenate([~wanted, wanted])
    found = localisation.foreground_precision(scores, truth)
    assert found == pytest.approx(slow_average_precision(ranked, positive))
    empty = np.full((2, 2), IGNORE, np.uint8)
    assert localisation.foreground_precision(scores[:2, :2], empty) == 0.0
    assert localisation.foreground_f1(np.array([[4, 0], [0, 0]])) == 0.0


# Masks and forwards.


def toy_logits(images):
    """Two classes: the first looks at the red of the left half, the second at that of the right."""
    half = images.shape[2] // 2
    left, right = images[:, :, :half, 0].mean((1, 2)), images[:, :, half:, 0].mean((1, 2))
    return jnp.stack([8 * left - 2, 8 * right - 2], axis=-1)


def test_masks_are_stretched_and_then_enlarged():
    maps = jax.random.normal(jax.random.key(0), (2, 3, 4, 2))
    masks = seeing.masks_of(maps, (6, 8))
    wanted = jax.image.resize(normalise.min_max(maps), (2, 6, 8, 2), "bilinear")
    np.testing.assert_allclose(masks, wanted, atol=1e-6)
    assert float(masks.min()) >= 0 and float(masks.max()) <= 1
    blank = seeing.masks_of(jnp.full((1, 3, 4, 1), -1.0), (6, 8))
    assert not blank.any()


def test_only_the_strongest_pixels_are_kept():
    masks = jnp.array([0.5, 0.2, 0.5, 0.1]).reshape(1, 2, 2, 1)
    kept = seeing.strongest(masks, 0.25).ravel()
    np.testing.assert_array_equal(kept, np.array([0.5, 0, 0, 0], np.float32))
    np.testing.assert_array_equal(seeing.strongest(masks, 1.0), masks)
    with pytest.raises(ValueError, match="above 0"):
        seeing.strongest(masks, 0.0)


def test_a_perfect_map_keeps_its_class_and_takes_it_away():
    images = jnp.full((1, 4, 8, 3), 0.5, jnp.float32)
    masks = jnp.zeros((1, 4, 8, 2)).at[:, :, :4, 0].set(1.0).at[:, :, 4:, 1].set(1.0)
    chosen = jnp.array([[True, True]])
    fill = jnp.zeros(3)
    shown = seeing.through_maps(toy_logits, images, masks, chosen, fill=fill)
    rows = faithfulness.rows_of(*(np.asarray(part) for part in shown), np.asarray(chosen))
    found = faithfulness.summary(rows)
    sure, nothing = 1 / (1 + np.exp(-2)), 1 / (1 + np.exp(2))
    assert found["drop"] == pytest.approx(0, abs=1e-6)
    assert found["retention"] == pytest.approx((sure - nothing) / sure, rel=1e-5)
    assert found["drop_of_others"] == pytest.approx(found["retention"])
    assert found["retention_of_others"] == pytest.approx(0, abs=1e-6)


def test_masked_images_equal_a_loop_over_classes():
    images = photos()
    masks = jax.random.uniform(jax.random.key(3), (2, 8, 12, 2))
    chosen = jnp.array([[True, True], [False, True]])
    fill = jnp.array([0.4, 0.3, 0.2])
    run = jax.jit(lambda x: seeing.through_maps(toy_logits, x, masks, chosen, fill=fill))
    shown = run(images)
    for image, label in np.argwhere(chosen):
        mask = np.asarray(masks)[image, ..., label, None]
        for found, weight in ((shown.kept, mask), (shown.removed, 1 - mask)):
            view = np.asarray(images)[image] * weight + np.asarray(fill) * (1 - weight)
            wanted = jax.nn.sigmoid(toy_logits(jnp.asarray(view)[None]))[0]
            np.testing.assert_allclose(found[image, label], wanted, atol=1e-6)
    assert not shown.kept[1, 0].any()
    with pytest.raises(ValueError, match="enlarge"):
        seeing.through_maps(toy_logits, images, masks[:, :4], chosen, fill=fill)


def test_pixels_are_exchanged_in_the_order_of_the_map():
    values = jnp.array([[3.0, 1.0], [3.0, 2.0]])[None]
    images = jnp.arange(1.0, 5.0).reshape(1, 2, 2, 1) * jnp.ones((1, 1, 1, 3))

    def sums(x):
        return x[..., 0].sum(axis=(1, 2))[:, None]

    steps = (0.0, 0.25, 0.5, 0.8, 1.0)

    def falling(maps):
        others = jnp.zeros_like(images)
        return seeing.exchanged(sums, images, others, maps, shares=steps).ravel()

    np.testing.assert_allclose(falling(values), [10, 9, 6, 2, 0])  # equal values in reading order
    np.testing.assert_allclose(falling(-values), [10, 8, 4, 3, 0])
    inserted = seeing.exchanged(sums, jnp.zeros_like(images), images, values, shares=steps[::2])
    np.testing.assert_allclose(inserted.ravel(), [0, 4, 10])
    with pytest.raises(ValueError, match="one size"):
        seeing.exchanged(sums, images, images, values[:, :1], shares=(0.5,))


def test_a_scorer_gives_logits():
    logits = logits_of(net_t(), t_image())
    np.testing.assert_allclose(logits, [[1, 6, -2]], rtol=1e-6)
