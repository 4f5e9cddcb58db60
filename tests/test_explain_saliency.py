from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_scorers import conv_scorer, net_t, photos, t_image

from wsss_jax.explain import saliency
from wsss_jax.types import Scorer

ONE = jnp.ones((1, 1), bool)


def pixel_scorer(score):
    """One class, whose score is a function of the red values in row-major order."""
    return Scorer(
        features=lambda x: x, head=lambda a: jax.vmap(score)(a[..., 0].reshape(1, -1))[:, None]
    )


def row_image(*values):
    return (
        jnp.asarray(values, jnp.float32)[None, None, :, None]
        * jnp.array([1.0, 0, 0])[None, None, None]
    )


def right_riemann(steps):
    return tuple(((step + 1) / steps, 1 / steps) for step in range(steps))


@pytest.mark.parametrize(
    ("nodes", "wanted"),
    [
        (saliency.gauss_legendre(1), [4, 3]),
        (saliency.gauss_legendre(16), [4, 3]),
        (right_riemann(1), [8, 3]),
        (right_riemann(2), [6, 3]),
        (right_riemann(5), [4.8, 3]),
    ],
)
def test_integrated_gradients_of_a_quadratic(nodes, wanted):
    scorer = pixel_scorer(lambda x: x[0] ** 2 + 3 * x[1])
    maps = saliency.integrated_gradients(scorer, row_image(2, 1), ONE, nodes=nodes)
    np.testing.assert_allclose(maps.reshape(-1), wanted, rtol=1e-5)


def test_integrated_gradients_of_net_t_are_complete():
    for nodes in (saliency.gauss_legendre(1), None):
        maps = saliency.integrated_gradients(
            net_t(), t_image(), jnp.ones((1, 3), bool), nodes=nodes
        )
        np.testing.assert_allclose(maps.sum(axis=(1, 2)), [[1, 5, -1.5]], rtol=1e-5)


def test_integrated_gradients_are_complete_through_a_relu_with_many_nodes():
    scorer, images = conv_scorer(), photos()
    nodes = saliency.gauss_legendre(200)
    maps = saliency.integrated_gradients(
        scorer, images, jnp.ones((2, 3), bool), baseline=0.5, nodes=nodes
    )
    ends = [scorer.head(scorer.features(x)) for x in (images, jnp.full_like(images, 0.5))]
    np.testing.assert_allclose(maps.sum(axis=(1, 2)), ends[0] - ends[1], atol=5e-3)


def test_vanilla_gradient_is_the_largest_of_three_colours():
    maps = saliency.vanilla_gradient(net_t(), t_image(), jnp.ones((1, 3), bool))
    np.testing.assert_allclose(maps[0, 0, 0], [0.25, 0.5, 0.25])


@pytest.mark.parametrize("seed", [0, 7])
def test_smooth_grad_of_a_linear_score_is_its_gradient(seed):
    labels = jnp.ones((1, 3), bool)
    maps = saliency.smooth_grad(net_t(), t_image(), labels, key=jax.random.key(seed), draws=3)
    wanted = saliency.vanilla_gradient(net_t(), t_image(), labels)
    np.testing.assert_allclose(maps, wanted, rtol=1e-5)


def test_smooth_grad_of_a_square_follows_the_mean_noise():
    key, draws = jax.random.key(2), 6
    scorer = pixel_scorer(lambda x: (x**2).sum())
    smooth = partial(saliency.smooth_grad, reduce=saliency.total, draws=draws, noise=0.5)
    maps = smooth(scorer, row_image(2, 1), ONE, key=key)
    noise = jnp.stack([jax.random.normal(k, (1, 1, 2, 3)) for k in jax.random.split(key, draws)])
    wanted = 2 * (jnp.array([2.0, 1.0]) + 0.5 * noise.mean(axis=0)[0, 0, :, 0])
    np.testing.assert_allclose(maps.reshape(-1), wanted, rtol=1e-5)
