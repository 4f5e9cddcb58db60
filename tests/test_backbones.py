"""Every backbone keeps the contract: a new line in BACKBONES is tested here without a new test.

Small networks run; of the others only the shapes are worked out, since running each would take
minutes, and their parts are the parts of the small ones.
"""

import re
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from wsss_jax.backbones import BACKBONES
from wsss_jax.models import build
from wsss_jax.models.heads import Classifier

NAMES = sorted(BACKBONES)
LIGHT = ("mobilenet_v1", "mobilenet_v2", "resnest14", "resnet18", "tiny")
HEAVY = [name for name in NAMES if name not in LIGHT]
STRIDES = {"resnet38d": 8} | {  # where 16 is not on offer
    name: int(found[1])
    for name in NAMES
    if (found := re.search(r"(?:patch|vit_?[sbl])(\d+)", name)) is not None
}
PARAMETERS = {  # as published, without the classifier
    "dinov2_vits14": 22_056_192 - 2 * 12 * 384,  # LayerScale is folded
    "dinov2_vits14_reg": 22_056_192 - 2 * 12 * 384 + 4 * 384,
    "resnet18": 11_689_512 - 513_000,
    "resnet34": 21_797_672 - 513_000,
    "resnet50d": 25_576_264 - 2_049_000,
    "resnet152": 60_192_808 - 2_049_000,
    "resnext50": 25_028_904 - 2_049_000,
    "wide_resnet50_2": 68_883_240 - 2_049_000,
    "resnet50": 25_557_032 - 2_049_000,
    "resnet50_irn": 25_557_032 - 2_049_000,
    "resnet101": 44_549_160 - 2_049_000,
    "resnest50": 25_434_240,
    "resnest101": 46_226_016,
    "resnest200": 68_152_544,
    "resnest269": 108_880_480,
    "resnet38d": 105_070_912,
}
# Full convolutions and means over the image add up in another order on another canvas.
SHARE = {"resnest14": 1e-5, "resnet18": 1e-5}
TIGHT, CANVAS = (33, 47), (48, 64)


@cache
def built(name):
    """Graph, parameters, and the network as one jitted function of (params, images, inside)."""
    module = BACKBONES[name](rngs=nnx.Rngs(0), output_stride=16)
    graph, params, rest = nnx.split(module, nnx.Param, ...)
    held = nnx.to_flat_state(rest)
    assert all(isinstance(v, nnx.BatchStat) for _, v in held), "neither parameter nor statistic"

    @jax.jit
    def run(params, images, inside):
        return nnx.merge(graph, params, rest, copy=True)(images, inside=inside)

    return module, params, run


def canvases(fill):
    """The same 33×47 image on a canvas of 48×64, with something else around it."""
    image = jax.random.normal(jax.random.key(0), (1, *TIGHT, 3))
    canvas = jnp.full((1, *CANVAS, 3), fill).at[:, :33, :47].set(image)
    inside = jnp.zeros((1, *CANVAS), bool).at[:, :33, :47].set(True)
    return image, canvas, inside


@pytest.mark.parametrize("name", LIGHT)
def test_maps_have_the_promised_strides_and_channels(name):
    module, params, run = built(name)
    maps = run(params, canvases(0.0)[0], None)
    assert len(maps) == len(module.strides) == len(module.channels)
    assert list(module.strides) == sorted(module.strides)
    for x, stride, channels in zip(maps, module.strides, module.channels, strict=True):
        assert x.shape == (1, -(-33 // stride), -(-47 // stride), channels)
        assert bool(jnp.isfinite(x).all())


@pytest.mark.parametrize("name", LIGHT)
def test_padding_changes_nothing(name):
    _, params, run = built(name)
    image, zeros, inside = canvases(0.0)
    alone, on_zeros = run(params, image, None), run(params, zeros, inside)
    on_garbage = run(params, canvases(jnp.nan)[1], inside)
    for tight, clean, dirty in zip(alone, on_zeros, on_garbage, strict=True):
        np.testing.assert_array_equal(clean, dirty)
        height, width = tight.shape[1:3]
        atol = SHARE.get(name, 0) * float(jnp.abs(tight).max())
        np.testing.assert_allclose(clean[:, :height, :width], tight, rtol=0, atol=atol)
        assert not np.asarray(clean[:, height:]).any()
        assert not np.asarray(clean[:, :, width:]).any()


@pytest.mark.parametrize("name", LIGHT)
def test_gradients_are_finite_and_reach_every_parameter(name):
    module, params, _ = built(name)
    graph, params, rest = nnx.split(module, nnx.Param, ...)
    _, canvas, inside = canvases(0.0)

    @jax.jit
    @jax.grad
    def gradient(params):
        features = nnx.merge(graph, params, rest, copy=True)(canvas, inside=inside)[-1]
        return jnp.square(features).mean()

    for path, leaf in jax.tree.leaves_with_path(gradient(params)):
        assert bool(jnp.isfinite(leaf).all()), path
        assert bool((leaf != 0).any()), path


@pytest.mark.parametrize("name", LIGHT)
def test_bfloat16_in_bfloat16_out(name):
    _, params, run = built(name)
    image = canvases(0.0)[0]
    exact, coarse = run(params, image, None)[-1], run(params, image.astype(jnp.bfloat16), None)[-1]
    assert coarse.dtype == jnp.bfloat16
    error = jnp.abs(coarse.astype(jnp.float32) - exact).mean()
    assert float(error) < 0.1 * float(jnp.abs(exact).mean())


# The deepest ResNeSts are resnest101 with more blocks, and take longest to trace.
@pytest.mark.parametrize("name", sorted(set(NAMES) - {"resnest200", "resnest269"}))
def test_shapes_and_sizes_need_no_memory(name):
    stride = STRIDES.get(name, 16)

    def make():
        module = BACKBONES[name](rngs=nnx.Rngs(0), output_stride=stride)
        if name in LIGHT:  # these ran
            return module, ()
        return module, module(jnp.zeros((1, *CANVAS, 3)), inside=jnp.ones((1, *CANVAS), bool))

    module, maps = nnx.eval_shape(make)
    leaves = jax.tree.leaves(nnx.state(module, nnx.Param))
    assert leaves and all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves)
    size = sum(int(np.prod(leaf.shape)) for leaf in leaves)
    assert size == PARAMETERS.get(name, size)
    assert list(module.strides) == sorted(module.strides) and module.strides[-1] == stride
    if maps:
        assert [x.shape for x in maps] == [
            (1, -(-CANVAS[0] // s), -(-CANVAS[1] // s), k)
            for s, k in zip(module.strides, module.channels, strict=True)
        ]


@pytest.mark.parametrize("name", NAMES)
def test_an_impossible_stride_is_refused(name):
    with pytest.raises(ValueError, match="output_stride is 5"):
        BACKBONES[name](rngs=nnx.Rngs(0), output_stride=5)


@cache
def classifier(dropout=0.0):
    """A classifier, its parameters, and all it computes as one jitted function."""
    model = Classifier(BACKBONES["tiny"](rngs=nnx.Rngs(0)), 4, rngs=nnx.Rngs(1), dropout=dropout)
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    assert not jax.tree.leaves(rest)

    @jax.jit
    def run(images, inside=None, key=None):
        bound = nnx.merge(graph, params, rest, copy=True)
        features = bound.features(images, inside, key)
        return features, bound.class_maps(features), bound(images, inside, key)

    return model, run


def test_logits_are_the_means_of_the_class_maps():
    image, canvas, inside = canvases(0.5)
    _, run = classifier()
    _, maps, logits = run(canvas, inside)
    height, width = -(-33 // 8), -(-47 // 8)
    mean = maps[:, :height, :width].mean(axis=(1, 2))
    np.testing.assert_allclose(logits, mean, atol=1e-5)
    np.testing.assert_allclose(logits, run(image)[2], atol=1e-5)
    empty = run(canvas, jnp.zeros_like(inside))[2]
    np.testing.assert_array_equal(empty, jnp.zeros((1, 4)))


def test_dropout_drops_whole_channels_and_only_with_a_key():
    _, run = classifier(dropout=0.5)
    image = canvases(0.0)[0]
    features, dropped = run(image)[0], np.asarray(run(image, None, jax.random.key(0))[0])
    gone = (dropped == 0).all(axis=(1, 2))
    kept = np.broadcast_to(~gone[:, None, None], features.shape)
    np.testing.assert_allclose(dropped[kept], 2 * np.asarray(features)[kept], rtol=1e-6)
    assert 0.2 < gone.mean() < 0.9


def test_another_images_inside_is_refused():
    model, _ = classifier()
    with pytest.raises(ValueError, match="pass the inside of the images"):
        model.head(jnp.zeros((1, 2, 2, 128)), jnp.ones((1, 64, 64), bool))


def test_no_classes_are_refused():
    with pytest.raises(ValueError, match="at least one"):
        Classifier(BACKBONES["tiny"](rngs=nnx.Rngs(0)), 0, rngs=nnx.Rngs(0))


def test_an_option_that_a_backbone_lacks_is_named():
    with pytest.raises(ValueError, match=r"mobilenet_v2 lacks an option.*remat"):
        build.backbone("mobilenet_v2", rngs=nnx.Rngs(0), output_stride=16, remat=True)
