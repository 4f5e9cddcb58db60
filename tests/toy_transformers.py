"""Small transformers to explain: one with drawn weights, and the stored reference network."""

from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

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
def stored_network(folder: Path):
    """The ViT-Ti of the reference files, its images in [0, 1], and both files."""
    stored = np.load(folder / "vit_tiny_patch16_224_96.npz")
    chefer = np.load(folder / "vit_tiny_patch16_224_96_chefer.npz")
    arrays = {
        name.removeprefix("weights/"): stored[name].astype(np.float32)
        for name in stored.files
        if name.startswith("weights/")
    }
    make = lambda: TokenClassifier(  # noqa: E731
        vit.build("tiny")(rngs=nnx.Rngs(0), grid=(6, 6)), 6, rngs=nnx.Rngs(0)
    )
    model = nnx.eval_shape(make)
    weights.fill(model, arrays)
    images = jnp.asarray(stored["input"].transpose(0, 2, 3, 1)) * 0.5 + 0.5
    return model, images, stored, chefer


def one_hot(stored, which):
    """Labels (2,6) with the one class per image that the reference explains."""
    name = {"top": "classes", "other": "classes_other"}[which]
    return jnp.asarray(np.arange(6)[None] == stored[name][:, None])
