"""Guided back-propagation by hand, and the loss that draws a network's input gradient to it."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_scorers import photos

from wsss_jax import explain
from wsss_jax.backbones.layers import relu6
from wsss_jax.explain import guided, saliency
from wsss_jax.systems import terms
from wsss_jax.types import Batch, Scorer

ALL = jnp.ones((1, 1), bool)


@pytest.mark.parametrize("rectify", [jax.nn.relu, relu6, lambda x: jnp.maximum(x, 0)])
def test_a_rectifier_passes_positive_gradients_through_positive_inputs(rectify):
    """Two rectifiers in a row at the red of four pixels; green and blue are not looked at."""
    image = (
        jnp.array([[1.0, 2.0], [-1.0, 3.0]])[None, ..., None]
        * jnp.array([1.0, 0, 0])[None, None, None]
    )
    signs = jnp.array([[1.0, -1.0], [1.0, 1.0]])[None]

    def head(red):
        return (signs * rectify(red[..., 0])).sum(axis=(1, 2))[:, None]

    scorer = Scorer(lambda x: rectify(x), head)
    maps = jax.jit(partial(guided.guided_gradient, scorer, reduce=saliency.total))(image, ALL)
    # Pixel 2 has a negative gradient, pixel 3 a negative value: neither arrives.
    np.testing.assert_array_equal(maps[0, ..., 0], [[1, 0], [0, 1]])
    plain = saliency.vanilla_gradient(scorer, image, ALL, reduce=saliency.total)
    np.testing.assert_array_equal(plain[0, ..., 0], [[1, -1], [0, 1]])


def test_networks_without_rectifiers_are_refused():
    for smooth in (jax.nn.gelu, jax.nn.swish, jax.nn.softplus):
        scorer = Scorer(smooth, lambda a: a.sum(axis=(1, 2)))
        with pytest.raises(ValueError, match="this network has no ReLU"):
            guided.guided_gradient(scorer, photos(1), jnp.ones((1, 3), bool))
    assert explain.EXPLAINERS["guided_gradient"] is guided.guided_gradient


def test_the_gradient_loss_draws_the_gradient_to_the_guided_one_which_stays():
    """One pixel: relu(x) @ mix, rectified, summed. The guided gradient is constant."""
    mix = jnp.array([[1.0, -1.0], [2.0, 0.5], [-1.0, 1.0]])
    image = jnp.full((1, 1, 1, 3), 0.5)
    fed = Batch(image, jnp.ones((1, 1), bool), jnp.ones((1, 1, 1), bool), jnp.ones(1, bool))

    def error(mix, loss_of=lambda logits: logits.sum()):
        def score(x):
            return jax.nn.relu(jax.nn.relu(x[:, 0, 0]) @ mix).sum(axis=1, keepdims=True)

        return terms.gradient_error(score, loss_of, fed)

    loss, found = error(mix)
    gradient, wanted = np.array([0, 2.5, 0]), np.array([0, 2.5, 0])
    assert float(loss) == pytest.approx(1.25)
    # Only the sums of rows reach the pixel, and only positive ones are guided.
    assert float(found) == pytest.approx(1 - gradient @ wanted / 2.5**2)
    mixed = mix.at[2].set(jnp.array([-1.0, 0.6]))
    _, found = error(mixed)
    assert float(found) == pytest.approx(1 - 2.5 / np.hypot(2.5, 0.4), abs=1e-6)
    slope = jax.grad(lambda mix: error(mix)[1])(mixed)
    # Of both halves of a row the sum counts: raising the third row's towards 0 lowers the error.
    np.testing.assert_allclose(slope[2], [slope[2, 0]] * 2, rtol=1e-5)
    assert float(slope[2, 0]) < 0
    _, opposite = error(mixed, lambda logits: -logits.sum())
    assert float(opposite) == pytest.approx(1)
