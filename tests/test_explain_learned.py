"""Images that channels climb to, and the part of an image that a cell looks at."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsss_jax.backbones.layers import relu6
from wsss_jax.explain import learned
from wsss_jax.explain.learned import Ascent


def red(images):
    return images[..., 0].mean(axis=(1, 2))


def test_an_image_climbs_to_what_its_score_asks_for_and_back_to_grey_without():
    start = learned.noise(jax.random.key(0), (1, 6, 8))
    found = learned.maximise(red, start, Ascent(40, 0.05, 0.0, jitter=2), key=jax.random.key(1))
    assert float(found[..., 0].min()) == 1
    np.testing.assert_allclose(found[..., 1:].mean(), start[..., 1:].mean(), atol=1e-3)
    grey = learned.maximise(
        lambda x: 0 * red(x), start, Ascent(30, 0.002, 1.0), key=jax.random.key(1)
    )
    assert float(jnp.abs(grey - 0.5).mean()) < 0.5 * float(jnp.abs(start - 0.5).mean())
    with pytest.raises(ValueError, match="0 steps"):
        Ascent(0)


def test_a_blur_keeps_plain_images_and_the_sum_of_a_point():
    point = jnp.zeros((1, 9, 9, 3)).at[0, 4, 4].set(1)
    np.testing.assert_allclose(learned.blurred(point, 1.0).sum(axis=(1, 2)), 1, rtol=1e-5)
    np.testing.assert_allclose(learned.blurred(jnp.ones((1, 4, 5, 3)), 0.5), 1, rtol=1e-6)


def test_the_box_of_a_cell_is_what_it_looks_at_though_its_channel_is_capped():
    def channels(images):
        return relu6(100 * jax.nn.relu(images.reshape(1, 2, 4, 3, 4, 3).sum(axis=(2, 4))))

    at = [jnp.array([n]) for n in (1, 2, 0)]
    gradient = np.asarray(learned.at_cell(channels, jnp.ones((1, 8, 12, 3)), *at))[0]
    assert learned.field_box(gradient, 1.0) == (4, 8, 8, 12)
    assert learned.field_box(gradient, 0.5) == (5, 9, 7, 11)
    assert learned.field_box(np.zeros((8, 12, 3)), 0.5) == (0, 0, 8, 12)
