"""Explanations by hand: classes in every form, tokens, photographs of any type, clear advice.

The forms of classes are those that people got wrong elsewhere: meta-pytorch/captum#887,
jacobgil/pytorch-grad-cam#257, #307 and #325, Project-MONAI/MONAI#5530.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from wsss_jax import explain
from wsss_jax.models import build

KERNEL = jax.random.normal(jax.random.key(0), (3, 8))
WEIGHTS = jax.random.normal(jax.random.key(1), (8, 4))
PHOTO = np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8)
ROW = [0, 0, 1, 0]


def features(images):
    return jax.nn.relu(images[:, ::4, ::4] @ KERNEL)


def head(maps):
    return maps.mean(axis=(1, 2)) @ WEIGHTS


def labels(wanted, images=1, classes=4):
    return (
        np.asarray(explain.labels_of(wanted, images=images, classes=classes)).astype(int).tolist()
    )


@pytest.mark.parametrize(
    "wanted",
    [
        [[2]],
        [2],
        2,
        (2,),
        np.array([[2]]),
        [ROW],
        [[0, 0, True, 0]],
        np.array([ROW]),
        np.array([ROW], float),
        np.array([ROW], bool),
        jnp.array([ROW], float),
        jnp.array([ROW]),
    ],
    ids=str,
)
def test_one_class_is_understood_in_every_form(wanted):
    assert labels(wanted) == [ROW]


@pytest.mark.parametrize(
    ("wanted", "advice"),
    [
        (None, r"no classes are named; give a list .* such as \[\[2\]\]"),
        ([[4]], "image 0 is labelled 4; the scorer knows 4 classes, numbered 0 to 3"),
        ([[-1]], "image 0 is labelled -1"),
        ([["cat"]], "labels of type"),
        ([[0.5, 0, 0, 0]], "wanted 4 booleans or 0 and 1"),
        (np.zeros((1, 3), bool), "wanted 4 booleans"),
    ],
    ids=str,
)
def test_what_names_no_class_is_refused_with_the_forms_that_do(wanted, advice):
    with pytest.raises(ValueError, match=advice):
        labels(wanted)


def test_many_images_have_a_list_each_and_two_classes_are_never_guessed():
    assert labels([[0], [1, 3]], images=2) == [[1, 0, 0, 0], [0, 1, 0, 1]]
    with pytest.raises(ValueError, match="one list of classes for a batch of 2"):
        labels([0, 1], images=2)
    with pytest.raises(ValueError, match="can be class numbers and can be flags"):
        labels([[0, 1]], classes=2)
    assert labels([[0], [0, 1]], images=2, classes=2) == [[1, 0], [1, 1]]
    assert labels([[1]], classes=1) == [[1]] and labels([[0]], classes=1) == [[1]]


def test_maps_come_in_the_order_of_the_classes_for_one_photograph_and_for_many():
    model = (features, head)
    maps = explain.grad_cam(model, PHOTO, classes=[2, 0])
    assert maps.shape == (4, 6, 2)
    both = np.stack([PHOTO, PHOTO[::-1]]).astype(np.float32) / 255
    np.testing.assert_allclose(explain.grad_cam(model, both, classes=[2, 0])[0], maps, atol=1e-6)
    each = explain.grad_cam(model, both, classes=[[2], [0]])
    assert each.shape == (2, 4, 6, 4)
    np.testing.assert_allclose(each[0, ..., 2], maps[..., 0], atol=1e-6)
    assert not each[0, ..., :2].any() and not each[1, ..., 1:].any()
    flags = explain.grad_cam(model, PHOTO, classes=ROW)
    np.testing.assert_allclose(flags[..., 0], maps[..., 0], atol=1e-6)


@pytest.mark.parametrize("extra", [0, 1])
def test_tokens_are_laid_on_the_grid_of_their_patches(extra):
    def tokens(images):
        maps = features(images).reshape(len(images), -1, 8)
        return jnp.concatenate([maps.mean(axis=1, keepdims=True)] * extra + [maps], axis=1)

    def pooled(values):
        return values[:, extra:].mean(axis=1) @ WEIGHTS

    found = explain.grad_cam((tokens, pooled), PHOTO, classes=[2])
    np.testing.assert_allclose(
        found, explain.grad_cam((features, head), PHOTO, classes=[2]), atol=1e-5
    )


def test_models_that_cannot_be_explained_get_advice():
    with pytest.raises(ValueError, match=r"scores of shape \(1,\) .* return scores\[:, None\]"):
        explain.grad_cam((features, lambda maps: head(maps)[:, 0]), PHOTO, classes=[0])
    with pytest.raises(ValueError, match="23 tokens are no grid of patches"):
        cut = (lambda x: features(x).reshape(1, -1, 8)[:, :23], lambda t: t.mean(axis=1) @ WEIGHTS)
        explain.grad_cam(cut, PHOTO, classes=[0])
    with pytest.raises(ValueError, match=r"wanted a flax\.nnx module"):
        explain.grad_cam(features, PHOTO, classes=[0])

    class Dropped(nnx.Module):
        def __init__(self):
            self.drop = nnx.Dropout(0.5, rngs=nnx.Rngs(0))

        def features(self, images):
            return self.drop(features(images))

        def head(self, maps):
            return head(maps)

    model = Dropped()
    with pytest.raises(ValueError, match=r"training mode \(drop\).*call model.eval\(\) first"):
        explain.grad_cam(model, PHOTO, classes=[0])
    model.eval()
    assert explain.grad_cam(model, PHOTO, classes=[0]).shape == (4, 6, 1)
    with pytest.raises(ValueError, match="no methods features"):
        explain.grad_cam(nnx.Linear(3, 4, rngs=nnx.Rngs(0)), PHOTO, classes=[0])


@pytest.mark.parametrize(
    ("images", "advice"),
    [
        (PHOTO.transpose(2, 0, 1), r"channels come last: np.moveaxis"),
        (PHOTO.astype(np.float32), r"wanted \[0, 1\]; divide by 255"),
        (PHOTO / 255 - 0.5, "subtract the mean inside the model"),
        (PHOTO.astype(np.int32), "wanted uint8 or floats"),
        (PHOTO[..., 0], "wanted one photograph"),
    ],
    ids=["channels first", "0..255", "normalised", "int32", "grey"],
)
def test_other_photographs_get_the_line_that_makes_them_right(images, advice):
    with pytest.raises(ValueError, match=advice):
        explain.grad_cam((features, head), images, classes=[0])


def test_a_network_of_ours_is_explained_by_features_by_pixels_and_by_its_linear_head():
    net = build.classifier("tiny", 3, key=jax.random.key(0), output_stride=8)
    assert explain.cam(net, PHOTO, classes=[1]).shape == (2, 3, 1)
    assert explain.vanilla_gradient(net, PHOTO, classes=[1]).shape == (16, 24, 1)
    with pytest.raises(ValueError, match="has no attention"):
        explain.rollout(net, PHOTO, classes=[1])


@pytest.mark.parametrize(
    ("model", "image", "classes", "advice"),
    [
        ((features, head), PHOTO, [[[2]]], "have shape"),
        ((features, head), PHOTO, slice(0, 2), "classes are a slice"),
        ((features, head), PHOTO[:0], [2], "no pixels"),
        (
            (lambda x: jnp.moveaxis(features(x), -1, 1), lambda f: f.mean((2, 3)) @ WEIGHTS),
            PHOTO,
            [2],
            "channels come last",
        ),
    ],
)
def test_what_would_give_a_wrong_map_or_no_advice_is_refused(model, image, classes, advice):
    with pytest.raises(ValueError, match=advice):
        explain.grad_cam(model, image, classes)
