"""Methods without a verified reference: what we say of them holds, and what they train learns."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from golden_weights import filled
from toy_scorers import net_t, photos, t_image

from wsss_jax.backbones.tiny import Tiny
from wsss_jax.datasets import synthetic
from wsss_jax.explain import experimental
from wsss_jax.models import decoder, lfi
from wsss_jax.models.heads import Classifier
from wsss_jax.systems import perception
from wsss_jax.train.optimizers import Optim
from wsss_jax.types import Batch, Scorer

EVEN = Optim("adamw", 2e-3, new_layers=1.0, schedule="constant")


def scenes(count=4, size=32):
    """A batch of the embedded data set."""
    drawn = [synthetic.scene(0, n, synthetic.Scenes(size=size)) for n in range(count)]
    images = np.stack([sample.image for sample in drawn]).astype(np.float32) / 255
    labels = np.stack([sample.labels for sample in drawn])
    full = np.ones((count, size, size), bool)
    return jax.tree.map(jnp.asarray, Batch(images, labels, full, np.ones(count, bool)))


def squared():
    """One class, whose score is the square of the sum of the red values."""
    return Scorer(lambda x: x[..., :1], lambda a: (a.sum(axis=(1, 2, 3)) ** 2)[:, None])


def test_taylor_cam_of_a_square_by_hand():
    image = jnp.arange(4.0).reshape(1, 2, 2, 1) * jnp.array([1.0, 0, 0])[None, None, None]
    one = jnp.ones((1, 1), bool)
    maps = jax.jit(partial(experimental.taylor_cam, squared()))(image, one)
    np.testing.assert_allclose(maps.reshape(-1), 2 * 6 * np.arange(4), rtol=1e-6)


def test_taylor_cam_of_a_linear_head_is_zero():
    every = jnp.ones((1, 3), bool)
    assert not jax.jit(partial(experimental.taylor_cam, net_t()))(t_image(), every).any()


def test_lfi_cam_weighs_channels_and_knows_no_classes():
    labels = jnp.array([[True, False, True]])
    maps = experimental.lfi_cam(
        net_t(), lambda images, features: jnp.array([[0.75, 0.25]]), t_image(), labels
    )
    for index, wanted in ((0, [3.25, 1.5, 0.75, 1.5]), (1, [0] * 4), (2, [3.25, 1.5, 0.75, 1.5])):
        np.testing.assert_allclose(maps[0, ..., index].reshape(-1), wanted)


def test_where_and_what_shows_the_reconstruction_in_the_map_and_white_elsewhere():
    maps = jnp.array([[[4.0, 2], [0, -1]]])[..., None]
    shown = experimental.perception(maps, jnp.full((1, 2, 2, 3), 0.2))
    np.testing.assert_allclose(shown[0, 0, ..., 0], [[0.2, 0.6], [1, 1]], rtol=1e-6)
    blank = experimental.perception(-maps * maps, jnp.zeros((1, 2, 2, 3)))
    np.testing.assert_array_equal(blank, 1)


def test_importance_sums_to_one_and_the_other_images_do_not_matter():
    def make():
        plain = Classifier(Tiny(rngs=nnx.Rngs(0)), 2, rngs=nnx.Rngs(0))
        return lfi.with_importance(plain, width=8, key=jax.random.key(0))

    graph, state = nnx.split(filled(make))
    images = photos(1, (16, 16))
    wide = jnp.zeros((1, 16, 24, 3)).at[:, :, :16].set(images)
    inside = jnp.zeros((1, 16, 24), bool).at[:, :, :16].set(True)

    @jax.jit
    def run(state, images, inside):
        module = nnx.merge(graph, state)
        features = module.plain.features(images, inside)
        return module.importance(images, features, inside), module(images, inside)

    # The grey image is squeezed onto the grid of its canvas, so a wider one is not quite the same.
    weights, logits = run(state, images, jnp.ones((1, 16, 16), bool))
    other = run(state, jnp.concatenate([images] * 2), jnp.ones((2, 16, 16), bool))
    assert weights.shape == (1, 128)
    np.testing.assert_allclose(weights.sum(axis=-1), 1, rtol=1e-5)
    np.testing.assert_allclose(other[1][:1], logits, rtol=1e-3, atol=1e-4)
    assert np.isfinite(run(state, wide, inside)[1]).all()


def test_a_classifier_without_a_feature_map_has_no_importance():
    with pytest.raises(ValueError, match="needs a head on a feature map, not Decoder"):
        lfi.with_importance(
            decoder.Decoder(2, stride=1, rngs=nnx.Rngs(0)), width=8, key=jax.random.key(0)
        )


def losses_of(system, batch, steps):
    state = jax.jit(system.init)(jax.random.key(0))
    step, found = jax.jit(system.step), []
    for number in range(steps):
        state, metrics = step(state, batch, jax.random.key(number))
        found.append(float(metrics["loss"]))
    assert step._cache_size() == 1 and np.isfinite(found).all()
    return state, found, step


def test_the_decoder_learns_to_rebuild_images_from_features():
    kernel = jax.random.normal(jax.random.key(0), (48, 16)) / 4

    def encode(images, inside):
        b, h, w, _ = images.shape
        blocks = images.reshape(b, h // 4, 4, w // 4, 4, 3).swapaxes(2, 3)
        return jax.nn.relu(blocks.reshape(b, h // 4, w // 4, 48) @ kernel)

    settings = perception.Perception(channels=16, stride=4, width=16, optim=EVEN)
    batch = scenes()
    state, losses, _ = losses_of(perception.make(settings, encode, steps=40), batch, 40)
    assert losses[-1] < 0.6 * losses[0]
    network = perception.structure(settings)
    rebuilt = network.bind(state.params, state.stats)(encode(batch.images, batch.inside))
    assert rebuilt.shape == batch.images.shape and 0 <= rebuilt.min() and rebuilt.max() <= 1


def test_a_decoder_needs_a_power_of_two():
    with pytest.raises(ValueError, match="stride is 12, wanted a power of two"):
        decoder.Decoder(4, stride=12, rngs=nnx.Rngs(0))
