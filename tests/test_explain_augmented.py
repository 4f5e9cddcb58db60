"""Augmented Grad-CAM: its operator, its functional, and known fine maps found again."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_scorers import conv_scorer, photos

from wsss_jax.explain import augmented, gradient
from wsss_jax.explain.augmented import Augmented, Readings, Views
from wsss_jax.ops import images as image_ops

SIZE, GRID = (16, 24), (4, 6)
SETTINGS = Augmented(views=24, iterations=150, chunk=7)


def shapes():
    """Two fine maps: a disc and a bar, and a ring; (pixels, 2)."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    disc = np.hypot(y - 6, x - 8) < 4
    bar = (abs(y - 11) < 2) & (abs(x - 16) < 6)
    ring = abs(np.hypot(y - 8, x - 13) - 5) < 1.5
    return jnp.asarray(np.stack([disc | bar, ring], -1).reshape(-1, 2), jnp.float32)


@cache
def solved():
    """What is known of a world: readings, what they give for the shapes, and the solution."""

    @jax.jit
    def run(key, truth):
        views = augmented.draw_views(key, SIZE, SETTINGS)
        readings = augmented.readings_of(views, GRID, SIZE, SETTINGS)
        wanted = augmented.observe(readings, truth, SETTINGS.chunk)
        solution = augmented.super_resolve(readings, wanted, SIZE, SETTINGS)
        at_truth = augmented.objective(readings, wanted, truth, SIZE, SETTINGS)
        return readings, wanted, solution, at_truth

    return run(jax.random.key(0), shapes())


def test_known_maps_are_found_again_from_their_views():
    _, wanted, solution, _ = solved()
    plain = image_ops.resize(wanted[0].T.reshape(2, *GRID, 1), SIZE).reshape(2, -1).T
    error = lambda maps: np.sqrt(np.square(np.asarray(maps - shapes())).mean(axis=0))  # noqa: E731
    assert (error(solution.maps) < 0.6 * error(plain)).all()


def test_the_functional_falls_below_that_of_the_true_map():
    _, _, solution, at_truth = solved()
    values = np.asarray(solution.objective)
    assert (values[-1] < 1.05 * at_truth).all() and (values[-1] <= 1.02 * values.min(axis=0)).all()
    assert (np.diff(values[:20], axis=0) < 0).all()


def test_spreading_is_the_adjoint_of_reading_and_chunks_do_not_matter():
    readings, wanted, _, _ = solved()
    fine = jax.random.normal(jax.random.key(1), (SIZE[0] * SIZE[1], 2))
    coarse = jax.random.normal(jax.random.key(2), wanted.shape)

    @partial(jax.jit, static_argnames="chunk")
    def both(chunk):
        there = augmented.observe(readings, fine, chunk)
        back = augmented.spread(readings, coarse, len(fine), chunk)
        return (there * coarse).sum(), (fine * back).sum(), back

    one, other, back = both(7)
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(both(24)[2], back, atol=1e-5)


def test_readings_of_the_image_itself_are_means_of_its_blocks():
    readings, wanted, _, _ = solved()
    blocks = shapes().reshape(4, 4, 6, 4, 2)
    middle = blocks[:, 0:1] * 0 + blocks  # all of a block: 2×2 points lie between its pixels
    np.testing.assert_allclose(readings.weights[0].sum(axis=-1), 1, rtol=1e-5)
    np.testing.assert_allclose(wanted[0].reshape(4, 6, 2), middle.mean(axis=(1, 3)), atol=1e-5)


def test_a_view_of_the_image_reads_the_same_as_the_image_of_the_view():
    """Turning the picture and reading its cells is reading the picture where the view looks."""
    view = Views(jnp.array(0.3), jnp.array([2.0, -3]))
    y, x = jnp.meshgrid(*(jnp.linspace(0, 1, n) for n in SIZE), indexing="ij")
    picture = (y + 2 * x)[None, ..., None]  # bilinear sampling is exact on a plane

    @jax.jit
    def run(picture):
        one = jax.tree.map(lambda a: a[None], view)
        readings = augmented.readings_of(one, GRID, SIZE, SETTINGS)
        read = augmented.observe(readings, picture.reshape(-1, 1), 1)[0, :, 0]
        turned = augmented.turned(picture, view)[0, ..., 0]
        return read, turned.reshape(4, 4, 6, 4).mean(axis=(1, 3)).reshape(-1), readings.weights

    read, means, weights = run(picture)
    inside = np.asarray(weights[0].sum(axis=-1) > 0)
    assert 5 < inside.sum() < 24 and not np.asarray(read)[~inside].any()
    inner = inside & (np.asarray(means) > 0.3)
    np.testing.assert_allclose(read[inner], means[inner], atol=0.05)


def identity(n):
    return Readings(jnp.arange(n)[None, :, None], jnp.ones((1, n, 1)))


def test_one_plain_view_without_smoothing_is_only_shrunk():
    settings = Augmented(views=1, smoothing=0.0, shrinking=0.5, iterations=60)
    wanted = jnp.arange(6.0)[None, :, None]
    found = jax.jit(lambda w: augmented.super_resolve(identity(6), w, (2, 3), settings).maps)(
        wanted
    )
    np.testing.assert_allclose(found[:, 0], jnp.arange(6.0) / 1.5, rtol=1e-4, atol=1e-5)


def test_a_constant_map_costs_no_variation_and_stays_constant():
    settings = Augmented(views=1, smoothing=0.1, shrinking=0.0, iterations=80)
    wanted = jnp.full((1, 6, 1), 0.7)
    found = jax.jit(lambda w: augmented.super_resolve(identity(6), w, (2, 3), settings).maps)(
        wanted
    )
    np.testing.assert_allclose(found, 0.7, atol=1e-3)
    assert augmented.total_variation(found, (2, 3))[0] < 1e-2


def test_total_variation_by_hand():
    fine = jnp.array([[0.0], [1], [0], [1]])
    assert augmented.total_variation(fine, (2, 2))[0] == 2


def test_maps_are_of_pixels_and_only_of_labels_and_scale_with_the_score():
    labels = jnp.array([[True, False, True], [False, True, False]])
    settings = Augmented(views=4, iterations=30, chunk=3)

    @jax.jit
    def run(images, factor):
        scorer = conv_scorer()
        scaled = scorer._replace(head=lambda a: factor * scorer.head(a))
        explain = partial(augmented.augmented_grad_cam, settings=settings, key=jax.random.key(0))
        return explain(scaled, images, labels)

    maps = np.asarray(run(photos(), 1.0))
    assert maps.shape == (2, 8, 12, 3) and np.isfinite(maps).all()
    assert not maps[0, ..., 1].any() and not maps[1, ..., [0, 2]].any()
    np.testing.assert_allclose(run(photos(), 5.0), 5 * maps, rtol=1e-3, atol=1e-4)


def test_only_the_view_of_the_image_itself_gives_its_own_map_back():
    """Without smoothing the readings of the fine map are the coarse map."""
    settings = Augmented(views=1, smoothing=0.0, shrinking=0.0, iterations=200, points=1)
    labels, scorer = jnp.ones((1, 3), bool), conv_scorer()

    @jax.jit
    def run(images):
        fine = augmented.augmented_grad_cam(
            scorer, images, labels, key=jax.random.key(0), settings=settings
        )
        readings = augmented.readings_of(
            augmented.draw_views(jax.random.key(0), (8, 12), settings), (4, 6), (8, 12), settings
        )
        read = augmented.observe(readings, fine[0].reshape(-1, 3), 1)[0]
        return read, jax.nn.relu(gradient.grad_cam(scorer, images, labels))[0].reshape(-1, 3)

    read, coarse = run(photos(1))
    np.testing.assert_allclose(read, coarse, atol=1e-3 * float(coarse.max()))


def test_settings_are_checked():
    with pytest.raises(ValueError, match="at least 1"):
        Augmented(views=0)
    with pytest.raises(ValueError, match="must not be negative"):
        Augmented(smoothing=-1.0)
