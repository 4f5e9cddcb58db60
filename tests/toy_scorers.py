"""Tiny classifiers for the explanation tests: one that is done by hand, one that is random."""

import jax
import jax.numpy as jnp
import numpy as np

from wsss_jax.types import Scorer

# Two activation maps, three classes: every number of the hand-computed tables follows from these.
T_IMAGE = np.array([[[4, 1], [2, 0]], [[0, 3], [2, 0]]], np.float32)
T_WEIGHT = np.array([[1, -1], [2, 1], [-1, 0.5]], np.float32)
T_BIAS = np.array([0, 1, -0.5], np.float32)


def pooled(features, weight, bias):
    """The logits of average pooling and a linear layer."""
    return (
        jnp.einsum("bhwk,ck->bc", features, weight, precision="highest")
        / (features.shape[1] * features.shape[2])
        + bias[None, :]
    )


def linear_scorer(features, weight, bias):
    weight, bias = jnp.asarray(weight), jnp.asarray(bias)
    return Scorer(
        features=features,
        head=lambda a: pooled(a, weight, bias),
        class_maps=lambda a: jnp.einsum("bhwk,ck->bhwc", a, weight, precision="highest"),
    )


def net_t():
    """Features are the first two image channels themselves."""
    return linear_scorer(lambda x: x[..., :2], T_WEIGHT, T_BIAS)


def t_image():
    """The one image of net T; the third channel is not looked at."""
    return jnp.asarray(np.concatenate([T_IMAGE, np.full((2, 2, 1), 7, np.float32)], -1)[None])


def conv_features(channels=4, seed=0, stride=2):
    """A strided symmetric 3x3 blur, a random 1x1 mixing and a ReLU: flips commute with it."""
    mix = jax.random.normal(jax.random.key(seed), (3, channels))

    def features(images):
        b, h, w, _ = images.shape
        blocks = images.reshape(b, h // stride, stride, w // stride, stride, 3).mean(axis=(2, 4))
        side = jnp.pad(blocks, ((0, 0), (1, 1), (1, 1), (0, 0)))
        rows = 0.25 * side[:, :-2] + 0.5 * side[:, 1:-1] + 0.25 * side[:, 2:]
        blurred = 0.25 * rows[:, :, :-2] + 0.5 * rows[:, :, 1:-1] + 0.25 * rows[:, :, 2:]
        return jax.nn.relu(jnp.einsum("bhwi,ik->bhwk", blurred, mix, precision="highest") + 0.1)

    return features


def conv_scorer(channels=4, classes=3, seed=0):
    """Those features under average pooling and a random linear layer."""
    key_weight, key_bias = jax.random.split(jax.random.key(seed + 100))
    weight = jax.random.normal(key_weight, (classes, channels))
    return linear_scorer(
        conv_features(channels, seed), weight, jax.random.normal(key_bias, (classes,))
    )


def photos(count=2, size=(8, 12), seed=1):
    return jax.random.uniform(jax.random.key(seed), (count, *size, 3))
