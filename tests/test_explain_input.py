"""What a caller may get wrong, each with one clear error; and the smallest network by hand."""

import doctest
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from toy_scorers import T_BIAS, T_WEIGHT, conv_scorer, net_t, photos, t_image

from wsss_jax import explain
from wsss_jax.explain import gradient, normalise
from wsss_jax.models import heads

ALL = jnp.ones((1, 3), bool)


def grad_cam(labels, scorer=None, images=None):
    images = t_image() if images is None else images
    return explain.checked(gradient.grad_cam)(scorer or net_t(), images, labels)


def test_classes_may_be_given_by_their_numbers():
    found = np.asarray(grad_cam([[1, 0]]))
    np.testing.assert_allclose(found[0, ..., 1].reshape(-1), [2.25, 1, 0.75, 1], rtol=1e-6)
    assert not found[..., 2].any()
    np.testing.assert_array_equal(grad_cam(jnp.array([[True, True, False]])), found)
    assert not np.asarray(grad_cam([[]])).any()


@pytest.mark.parametrize("number", [3, -1])
def test_a_class_outside_those_of_the_scorer_is_refused(number):
    message = f"image 0 is labelled {number}; the scorer knows 3 classes, numbered 0 to 2"
    with pytest.raises(ValueError, match=message):
        grad_cam([[0, number]])


def test_a_class_that_is_named_twice_is_a_row_of_another_length():
    with pytest.raises(ValueError, match="labelled twice with one class"):
        explain.labels_of([[0, 1, 0]], images=1, classes=4)


@pytest.mark.parametrize(
    ("images", "advice"),
    [
        (np.zeros((1, 2, 2, 3), np.uint8), r"images\.astype\(np\.float32\) / 255"),
        (np.zeros((1, 3, 2, 2), np.float32), r"np\.moveaxis\(images, 1, -1\)"),
        (np.zeros((2, 2, 3), np.float32), r"images\[None\]"),
        (np.zeros((2, 2), np.float32), r"wanted \(b, h, w, 3\)"),
    ],
)
def test_images_of_another_form_are_refused_with_the_line_that_makes_them(images, advice):
    with pytest.raises(ValueError, match=advice):
        grad_cam([[0]], images=images)


class _Dropping(nnx.Module):
    def __init__(self):
        self.dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(0))

    def features(self, images):
        return self.dropout(images)

    def head(self, features):
        return features.mean((1, 2))


def test_a_network_in_training_mode_is_named():
    network = _Dropping()
    scorer = explain.Scorer(network.features, network.head)
    network.train()
    with pytest.raises(ValueError, match=r"call network\.eval\(\) first"):
        grad_cam([[0]], scorer)
    network.eval()
    assert grad_cam([[0]], scorer).shape[-1] == 3


def test_labels_of_fewer_images_than_the_batch_are_refused():
    with pytest.raises(ValueError, match="labels of 1 images for a batch of 2"):
        explain.labels_of([[0]], images=2, classes=3)
    with pytest.raises(ValueError, match=r"labels are \(1, 3\), wanted \(2, 3\)"):
        jax.eval_shape(partial(gradient.grad_cam, conv_scorer()), photos(), ALL)


def test_a_head_without_class_maps_is_refused_by_cam_through_the_same_door():
    scorer = net_t()._replace(class_maps=None)
    with pytest.raises(ValueError, match="use a gradient method"):
        explain.checked(explain.class_maps.cam)(scorer, t_image(), [[0]])


def test_what_is_not_finite_is_named_and_placed():
    plain = net_t()
    broken = plain._replace(features=lambda x: plain.features(x).at[0, 1, 0, 1].set(jnp.nan))
    with pytest.raises(ValueError, match=r"features hold 1 values .* first at \(0, 1, 0, 1\)"):
        grad_cam([[0]], broken)
    with pytest.raises(ValueError, match="images hold 12 values that are not finite"):
        grad_cam([[0]], images=jnp.full((1, 2, 2, 3), jnp.inf))
    endless = plain._replace(head=lambda a: plain.head(a) / 0)
    with pytest.raises(ValueError, match="class scores hold 3 values"):
        grad_cam([[0]], endless)


def named_scorer():
    plain = conv_scorer()
    mix = jax.random.normal(jax.random.key(3), (4, 4))

    def features(images):
        x = checkpoint_name(plain.features(images), "early")
        return checkpoint_name(jax.nn.relu(x[:, ::2, ::2] @ mix), "late")

    return plain._replace(features=features, class_maps=None)


def test_fused_layer_cam_is_the_fusion_of_both_layers_maps():
    scorer, labels = named_scorer(), jnp.array([[True, False, True], [False, True, False]])

    @jax.jit
    def run(images):
        fused = gradient.fused_layer_cam(
            scorer, images, labels, layers=("early", "late"), shallow=1
        )
        cuts = [explain.equations.at_layer(scorer, images, name) for name in ("early", "late")]
        maps = [gradient.layer_cam(cut, images, labels) for cut in cuts]
        return fused, normalise.fuse_layers(maps, gamma=2.0, shallow=1)

    fused, wanted = run(photos())
    assert fused.shape == (2, 4, 6, 3) and 0 < np.asarray(fused).max() <= 1
    np.testing.assert_allclose(fused, wanted, rtol=1e-5)
    assert not np.asarray(fused[0, ..., 1]).any()


def test_a_layer_that_is_not_there_is_refused_with_the_nearest_name():
    with pytest.raises(ValueError, match="unknown layer 'lat'; did you mean 'late'"):
        gradient.fused_layer_cam(named_scorer(), photos(), jnp.ones((2, 3), bool), layers=("lat",))
    with pytest.raises(ValueError, match="this network has: early, late"):
        gradient.fused_layer_cam(named_scorer(), photos(), jnp.ones((2, 3), bool), layers=())


def test_kernel_usage_of_net_t():
    kernel = heads.kernel_usage(jnp.asarray(T_WEIGHT.T))
    wanted = [[0.259496, 1.410769, -0.035119], [-0.077696, 0.574097, 0.174104]]
    np.testing.assert_allclose(kernel, wanted, atol=1e-6)
    logits = jnp.array([2.0, 1]) @ kernel + T_BIAS
    np.testing.assert_allclose(logits, [0.441297, 4.395635, -0.396134], atol=1e-6)


def test_the_example_of_the_package_runs_as_it_stands():
    found = doctest.testmod(explain)
    assert found.attempted and not found.failed


def test_without_layers_the_end_of_each_stage_is_fused():
    scorer, labels = named_scorer(), jnp.array([[True, False, True], [False, True, False]])
    assert explain.equations.stage_ends(scorer, photos()) == ("early", "late")

    @jax.jit
    def run(images):
        plain = gradient.fused_layer_cam(scorer, images, labels)
        return plain, gradient.fused_layer_cam(
            scorer, images, labels, layers=("early", "late"), shallow=0
        )

    np.testing.assert_array_equal(*run(photos()))
