"""Dense heads: one forward pass for all, grids that lie over the image, padding that does not."""

import itertools
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from golden_weights import filled

from wsss_jax.backbones import BACKBONES
from wsss_jax.backbones.layers import Conv3x3, grid_inside, keep
from wsss_jax.models.dense_heads import HEADS, AffinityHead, Answers, Gathered, MultiTask, on_grid
from wsss_jax.models.heads import Classifier

SIZE, CANVAS = (30, 41), (48, 64)
STRIDES = {"saliency": 4, "edge": 4, "affinity": 8}


class Body(nnx.Module):
    """Four strided convolutions; maps of strides 4 and 16."""

    strides: tuple[int, ...] = (4, 16)
    channels: tuple[int, ...] = (8, 12)
    lean: float = 1.0
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)

    def __init__(self):
        widths = (3, 8, 8, 8, 12)
        self.layers = nnx.List(
            Conv3x3(a, b, stride=2, rngs=nnx.Rngs(0)) for a, b in itertools.pairwise(widths)
        )

    def __call__(self, images, *, inside: Any = None, rngs=None):
        x, cells, maps = images, inside, []
        for layer in self.layers:
            x = jax.nn.relu(layer(x, cells))
            cells = grid_inside(cells, 2)
            maps.append(keep(x, cells))
        return maps[1], maps[3]


@cache
def built():
    def make():
        body = Body()
        classifier = Classifier(body, 3, rngs=nnx.Rngs(2), dropout=0.5)
        return MultiTask(body, STRIDES, classifier=classifier, rngs=nnx.Rngs(1))

    graph, params, rest = nnx.split(filled(make), nnx.Param, ...)

    @jax.jit
    def run(params, images, inside):
        return nnx.merge(graph, params, rest, copy=True)(images, inside)

    return graph, params, rest, run


def image():
    return np.random.default_rng(0).random((1, *SIZE, 3), np.float32)


def on_canvas(top, left):
    images = np.full((1, *CANVAS, 3), np.nan, np.float32)
    inside = np.zeros((1, *CANVAS), bool)
    place = np.s_[:, top : top + SIZE[0], left : left + SIZE[1]]
    images[place], inside[place] = image(), True
    return jnp.asarray(images), jnp.asarray(inside)


def test_one_forward_pass_gives_all_on_their_own_grids():
    _, params, _, run = built()
    found = run(params, jnp.asarray(image()), jnp.ones((1, *SIZE), bool))
    assert found.logits.shape == (1, 3) and found.class_maps.shape == (1, 2, 3, 3)
    assert found.saliency.shape == found.edge.shape == (1, 8, 11)
    assert found.affinity.shape == (1, 4, 6, 256)
    assert all(jnp.isfinite(answer).all() for answer in found)
    np.testing.assert_allclose(found.class_maps.mean((1, 2)), found.logits, atol=1e-5)


@pytest.mark.parametrize(("top", "left"), [(0, 0), (16, 16)])
def test_padding_changes_nothing_wherever_the_image_lies(top, left):
    _, params, _, run = built()
    alone = run(params, jnp.asarray(image()), jnp.ones((1, *SIZE), bool))
    padded = run(params, *on_canvas(top, left))
    for name, stride in STRIDES.items():
        one, other = np.asarray(getattr(alone, name)), np.asarray(getattr(padded, name))
        y, x = top // stride, left // stride
        cut = other[:, y : y + one.shape[1], x : x + one.shape[2]]
        np.testing.assert_allclose(cut, one, atol=1e-4 * np.abs(one).max())
        assert np.isfinite(other).all()


@pytest.mark.parametrize("name", sorted(HEADS))
def test_any_subset_is_a_network(name):
    def answer():
        return MultiTask(Body(), {name: 8}, rngs=nnx.Rngs(1))(jnp.zeros((2, 32, 32, 3)))

    found = nnx.eval_shape(answer)
    assert [field for field in Answers._fields if getattr(found, field) is not None] == [name]
    assert getattr(found, name).shape[:3] == (2, 4, 4)


def test_unknown_heads_and_foreign_classifiers_are_refused():
    def foreign():
        other = Classifier(Body(), 3, rngs=nnx.Rngs(2))
        return MultiTask(Body(), {}, classifier=other, rngs=nnx.Rngs(1))

    with pytest.raises(ValueError, match="another backbone"):
        nnx.eval_shape(foreign)
    with pytest.raises(ValueError, match="did you mean 'saliency'"):
        nnx.eval_shape(lambda: MultiTask(Body(), {"salience": 4}, rngs=nnx.Rngs(1)))


def test_gradients_are_finite_reach_everything_and_stop_at_the_backbone_when_told():
    graph, params, rest, _ = built()
    images, inside = jnp.asarray(image()), jnp.ones((1, *SIZE), bool)

    def total(params, learns_body):
        module = nnx.merge(graph, params, rest, copy=True)
        found = module(images, inside, jax.random.key(0), learns_body=learns_body)
        return sum(jnp.square(getattr(found, name)).sum() for name in STRIDES)

    @jax.jit
    def both(params):
        return jax.grad(total)(params, True), jax.grad(total)(params, False)

    whole, heads = (dict(nnx.to_flat_state(found)) for found in both(params))
    assert all(bool(jnp.isfinite(leaf[...]).all()) for leaf in whole.values())
    for path, leaf in whole.items():
        own = path[0] in STRIDES
        assert bool(leaf[...].any()) == (path[0] != "classifier"), path
        assert bool(heads[path][...].any()) == own, path


@pytest.mark.parametrize("name", ["mobilenet_v2", "resnet50_irn", "resnet38d", "vit_tiny"])
def test_heads_fit_every_family_of_backbones(name):
    def make():
        body = BACKBONES[name](rngs=nnx.Rngs(0), output_stride=8 if name == "resnet38d" else 16)
        return MultiTask(body, STRIDES, rngs=nnx.Rngs(1))

    def answer():
        return make()(jnp.zeros((1, 64, 64, 3)))

    found = nnx.eval_shape(answer)
    assert found.edge.shape == (1, 16, 16) and found.affinity.shape[:3] == (1, 8, 8)


def test_the_affinity_head_has_the_widths_of_the_paper():
    body = nnx.eval_shape(lambda: BACKBONES["mobilenet_v2"](rngs=nnx.Rngs(0), output_stride=16))
    head = nnx.eval_shape(lambda: AffinityHead(body, rngs=nnx.Rngs(0)))
    assert head.gathered.strides == (8, 16, 16) and head.last.kernel.shape == (448, 448)
    with pytest.raises(ValueError, match="2 widths for 3 maps"):
        nnx.eval_shape(lambda: Gathered(body, 8, (4, 8), rngs=nnx.Rngs(0)))


@pytest.mark.parametrize("lean", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("stride", "to"), [(8, 4), (4, 8), (4, 4)])
def test_maps_are_read_in_the_middle_of_cells(lean, stride, to):
    columns = np.arange(64 // stride, dtype=np.float32) * stride + lean * (stride - 1)
    x = jnp.asarray(np.broadcast_to(columns[None, None, :, None], (1, 2, columns.size, 1)))
    cells = jnp.ones((1, 2, columns.size), bool)
    found = on_grid(x, cells, stride, to=to, lean=lean, size=(2, 64 // to))[0, 0, :, 0]
    middle = np.arange(64 // to) * to + (to - 1) / 2
    np.testing.assert_allclose(found, np.clip(middle, columns[0], columns[-1]), atol=1e-4)
