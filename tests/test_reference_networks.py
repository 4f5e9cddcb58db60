"""Our networks give what their references give, for weights drawn from their names.

``make_goldens.py`` ran the references; names that come with a family of networks are of small
ones, with one block per stage or four narrow blocks. Odd sizes show how windows are padded.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from golden_draw import FOLDER, fingerprint, normal, reference_arrays

from wsss_jax.backbones import BACKBONES, resnest, resnet, vit
from wsss_jax.backbones.resnet38d import ResNet38d
from wsss_jax.backbones.vit_hybrid import HybridViT
from wsss_jax.weights import loading as weights

SMALL = partial(resnet.ResNet, resnet.Bottleneck, (1, 1, 1, 1))
NARROW = partial(vit.ViT, 48, 4, 3)
CONVOLUTIONAL = {
    **{
        name: BACKBONES[name]
        for name in (
            "resnet50", "resnest14", "efficientnet_lite0", "mobilenetv2_100", "mobilenet_v1",
            "mobilenet_v2",
        )
    },
    "resnet34": partial(resnet.ResNet, resnet.Basic, (1, 1, 1, 1)),
    "resnet50d": partial(SMALL, resnet.Variant(deep=True)),
    "resnest101": partial(resnest.ResNeSt, (1, 1, 1, 1), stem=64),
    "resnext50": partial(SMALL, resnet.Variant(widen=2, groups=32)),
    "wide_resnet50_2": partial(SMALL, resnet.Variant(widen=2)),
}  # fmt: skip
TRANSFORMERS = {
    "vit_small": partial(vit.build("small"), grid=(3, 3)),
    "vit_base_r50": partial(HybridViT, grid=(3, 3)),
    "dinov2_vits14_reg": partial(vit.build("small", vit.DINOV2_REGISTERS), grid=(3, 3)),
    "dinov3": partial(NARROW, vit.DINOV3),
    "clip_quick": partial(NARROW, vit.CLIP_QUICK._replace(patch=32, grid=3)),
    "deit_distilled": partial(NARROW, vit.DEIT._replace(further=1, grid=4)),
}


def our_maps(name, make):
    """Every map of the network for the images of the reference, and fingerprints of theirs."""
    arrays, size = reference_arrays(name)
    module = nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0)))
    weights.fill(module, arrays, called=name)
    graph, state = nnx.split(module)
    images = jnp.asarray(normal("images", (2, 3, *size)).transpose(0, 2, 3, 1))
    maps = jax.jit(lambda state, x: nnx.merge(graph, state)(x))(state, images)
    with np.load(FOLDER / "networks.npz") as file:
        return maps, file[f"{name}/maps"]


def assert_same(maps, wanted):
    """Along every direction, within a share of the root mean square of the reference."""
    for number, (x, theirs) in enumerate(zip(maps, wanted, strict=True)):
        scale = np.sqrt(np.square(theirs).mean())
        away = np.abs(fingerprint(x) - theirs).max() / scale
        assert away < 1e-4, f"map {number}: {away}"


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_every_map_is_that_of_the_reference(name):
    assert_same(*our_maps(name, partial(CONVOLUTIONAL[name], output_stride=32)))


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_the_last_tokens_are_those_of_the_reference(name):
    maps, wanted = our_maps(name, TRANSFORMERS[name])
    assert_same(maps[-1:], wanted)


def test_resnet38d_has_the_taps_of_its_authors():
    maps, wanted = our_maps("resnet38d", ResNet38d)
    assert_same(maps[2:], wanted)
