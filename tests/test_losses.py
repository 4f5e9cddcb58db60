"""Dense losses and the pairs they are about: by hand, against slow versions, and their flags."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsss_jax import losses
from wsss_jax.losses import pairs
from wsss_jax.ops import affinity
from wsss_jax.types import IGNORE

LABELS = [[0, 0, 1], [0, IGNORE, 1], [2, 2, 1]]


def labels(*rows):
    return jnp.asarray(rows, jnp.int32)


def slow_pairs(grid, radius):
    """Pair by pair in Python."""
    grid = np.asarray(grid)
    height, width = grid.shape
    found = np.zeros((3, len(affinity.stencil(radius)), height, width), bool)
    for i, (dy, dx) in enumerate(affinity.stencil(radius)):
        for y in range(height):
            for x in range(width):
                if not (y + dy < height and 0 <= x + dx < width):
                    continue
                a, b = grid[y, x], grid[y + dy, x + dx]
                if IGNORE in (a, b):
                    continue
                found[0 if a == b == 0 else 1 if a == b else 2, i, y, x] = True
    return found


@pytest.mark.parametrize("radius", [2, 3, 5])
def test_pairs_equal_the_slow_version(radius):
    grids = [LABELS, np.random.default_rng(0).choice([0, 1, 2, IGNORE], (3, 3))]
    found = jax.jit(pairs.pairs, static_argnums=1)(labels(*grids), radius)
    for row, grid in enumerate(grids):
        expected = slow_pairs(grid, radius)
        for kind, slow in zip(found, expected, strict=True):
            np.testing.assert_array_equal(kind[row], slow)


def test_pairs_by_hand():
    found = pairs.pairs(labels([[0, 0, 1]]), 2)  # to the right, and below left, below, below right
    assert [int(kind.sum()) for kind in found] == [1, 0, 1]
    assert pairs.pairs(labels(np.zeros((56, 56), int)), 10).background.shape == (1, 152, 56, 56)


def test_a_mask_is_read_in_the_middle_of_cells_and_never_on_padding():
    mask = jnp.arange(35, dtype=jnp.int32).reshape(1, 5, 7)
    np.testing.assert_array_equal(
        pairs.at_cells(mask, 4)[0], [[2 * 7 + 2, 2 * 7 + 6], [4 * 7 + 2, 4 * 7 + 6]]
    )
    np.testing.assert_array_equal(pairs.at_cells(mask, 1), mask)
    inside = jnp.zeros((1, 5, 7), bool).at[:, :4].set(True)
    np.testing.assert_array_equal(pairs.at_cells(mask, 4, inside)[0, 1], [IGNORE, IGNORE])


def test_pair_loss_by_hand_is_what_three_papers_write():
    kinds = pairs.Pairs(
        *(jnp.asarray(kind, bool)[None, None, None] for kind in
          ([1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 1, 0]))
    )  # fmt: skip
    values = jnp.asarray([0.5, 1.0, 0.25, 0.75, 0.9], jnp.float32)[None, None, None]
    background, foreground, different = -np.log(0.5) / 2, -np.log(0.25), -np.log(0.25)
    found = float(losses.pair_affinity(values, kinds))
    assert found == pytest.approx(background / 4 + foreground / 4 + different / 2, rel=1e-4)
    assert found == pytest.approx(((background / 2 + foreground / 2) + different) / 2, rel=1e-4)
    assert 4 * found == pytest.approx(background + foreground + 2 * different, rel=1e-4)


def test_pair_loss_and_gradient_are_finite_at_both_ends_and_without_pairs():
    values = jnp.asarray([0.0, 1.0], jnp.float32).reshape(1, 1, 1, 2)
    for flag in (True, False):
        kinds = pairs.Pairs(*(jnp.full((1, 1, 1, 2), flag) for _ in range(3)))
        value, slope = jax.value_and_grad(losses.pair_affinity)(values, kinds)
        assert jnp.isfinite(value) and jnp.isfinite(slope).all()
        assert flag or float(value) == 0


def test_binary_by_hand_leaves_unknown_cells_out():
    logits = jnp.asarray([[[0.0, 2.0, 50.0]]])
    found = losses.binary(logits, labels([[1, 0, IGNORE]]))
    np.testing.assert_allclose(found, [(np.log(2) + np.log1p(np.exp(2))) / 2], rtol=1e-5)
    assert float(losses.binary(logits, labels([[IGNORE] * 3]))[0]) == 0


def test_edges_are_balanced_by_hand():
    logits = jnp.zeros((2, 1, 5))
    found = losses.balanced_binary(logits, labels([[1, 0, 0, 0, IGNORE]], [[0] * 5]))
    # One edge of weight 3/4, three others of weight 1.1/4; without edges no cell weighs anything.
    np.testing.assert_allclose(found, [np.log(2) * (0.75 + 3 * 1.1 / 4) / 4, 0], rtol=1e-5)


@pytest.mark.parametrize("loss", [losses.binary, losses.balanced_binary])
def test_rows_without_targets_cost_nothing_and_teach_nothing(loss):
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(size=(2, 4, 5)), jnp.float32)
    targets = jnp.asarray(rng.integers(0, 2, (2, 4, 5)), jnp.int32)
    given = losses.where_given(targets, jnp.asarray([True, False]))

    def mean(x):
        return losses.mean_over_given(loss(x, given), given)

    value, slope = jax.jit(jax.value_and_grad(mean))(logits)
    assert float(value) == pytest.approx(float(loss(logits[:1], targets[:1])[0]), rel=1e-6)
    assert not slope[1].any() and jnp.isfinite(slope).all() and slope[0].any()
    nothing = losses.where_given(targets, jnp.asarray([False, False]))
    assert float(losses.mean_over_given(loss(logits, nothing), nothing)) == 0
