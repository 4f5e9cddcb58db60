"""Small transformers to explain: one with drawn weights, and the stored reference network."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from golden_draw import EXPLAINED, FOLDER, drawn, normal

from wsss_jax.backbones import vit
from wsss_jax.models.token_classifier import TokenClassifier
from wsss_jax.weights import loading as weights

CLASSES = 4


@cache
def small():
    """Two narrow blocks on a grid of 2×3, four classes."""
    body = vit.ViT(24, 2, 3, grid=(2, 3), rngs=nnx.Rngs(0))
    return TokenClassifier(body, CLASSES, rngs=nnx.Rngs(1))


def photos(count=2, size=(32, 48)):
    """Random images in [0, 1]."""
    return jax.random.uniform(jax.random.key(3), (count, *size, 3))


@cache
def stored_network():
    """The small network of the stored explanations, its images in [0, 1], its labels, and maps."""
    with np.load(FOLDER / "explanations.npz") as file:
        stored = {name[4:]: file[name] for name in file.files if name.startswith("vit/")}
    parameters = [line.split() for line in stored["parameters"]]
    arrays = {name: drawn(name, tuple(map(int, shape))) for name, *shape in parameters}

    def make():
        body = vit.ViT(24, 3, 3, grid=(3, 3), rngs=nnx.Rngs(0))
        return TokenClassifier(body, 6, rngs=nnx.Rngs(0))

    model = nnx.eval_shape(make)
    weights.fill(model, arrays)
    images = jnp.asarray(normal("images", (2, 3, 48, 48)).transpose(0, 2, 3, 1)) * 0.5 + 0.5
    labels = jnp.asarray(np.arange(6)[None] == np.array(EXPLAINED)[:, None])
    return model, images, labels, stored
