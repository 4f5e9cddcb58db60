import jax.numpy as jnp
import numpy as np
import pytest
from toy_scorers import T_BIAS, conv_scorer, net_t, photos, t_image

from wsss_jax.explain import class_maps
from wsss_jax.explain.contract import check_labels

ALL = jnp.ones((1, 3), bool)
FIRST_TWO = jnp.array([[True, True, False]])


def row_major(maps, index):
    return np.asarray(maps[0, ..., index]).reshape(-1)


def test_cam_of_net_t():
    maps = class_maps.cam(net_t(), t_image(), ALL)
    np.testing.assert_allclose(row_major(maps, 0), [3, 2, -3, 2])
    np.testing.assert_allclose(row_major(maps, 1), [9, 4, 3, 4])
    np.testing.assert_allclose(row_major(maps, 2), [-3.5, -2, 1.5, -2])


def test_mean_of_cam_plus_bias_is_the_logit():
    scorer = net_t()
    maps = class_maps.cam(scorer, t_image(), ALL)
    logits = scorer.head(scorer.features(t_image()))
    np.testing.assert_allclose(maps.mean(axis=(1, 2)) + T_BIAS[None], logits, rtol=1e-6)


@pytest.mark.parametrize(
    ("labels", "index", "wanted"),
    [
        ([1, 1, 0], 0, [-6, -2, -6, -2]),
        ([1, 1, 0], 1, [6, 2, 6, 2]),
        ([1, 0, 0], 0, [3, 2, -3, 2]),
        ([1, 1, 1], 0, [0.25, 1, -5.25, 1]),
        ([1, 1, 1], 1, [9.25, 4, 3.75, 4]),
        ([1, 1, 1], 2, [-9.5, -5, 1.5, -5]),
    ],
)
def test_min_max_cam_of_net_t(labels, index, wanted):
    maps = class_maps.min_max_cam(net_t(), t_image(), jnp.array([labels], bool))
    np.testing.assert_allclose(row_major(maps, index), wanted)


def test_min_max_cam_of_a_class_outside_the_image_subtracts_the_mean():
    maps = class_maps.min_max_cam(net_t(), t_image(), ALL, among=FIRST_TWO)
    plain = class_maps.cam(net_t(), t_image(), ALL)
    wanted = plain[..., 2] - (plain[..., 0] + plain[..., 1]) / 2
    np.testing.assert_allclose(maps[..., 2], wanted, rtol=1e-6)


def test_min_max_maps_of_an_image_sum_to_zero():
    labels = jnp.array([[True, True, False], [True, True, True]])
    maps = class_maps.min_max_cam(conv_scorer(), photos(), labels)
    np.testing.assert_allclose(maps.sum(axis=-1), 0, atol=1e-5)


@pytest.mark.parametrize(
    ("labels", "index", "wanted"),
    [
        ([1, 1, 0], 0, [-5, -2, -3, -2]),
        ([1, 1, 0], 1, [5, 2, 3, 2]),
        ([1, 1, 1], 0, [1.25, 1, -2.25, 1]),
    ],
)
def test_d_min_max_cam_of_net_t(labels, index, wanted):
    maps = class_maps.d_min_max_cam(net_t(), t_image(), jnp.array([labels], bool))
    np.testing.assert_allclose(row_major(maps, index), wanted)


def test_a_head_that_is_not_linear_is_refused():
    scorer = net_t()._replace(class_maps=None)
    with pytest.raises(ValueError, match="use a gradient method"):
        class_maps.cam(scorer, t_image(), ALL)


@pytest.mark.parametrize("shape", [(1, 3), (2, 4)])
def test_labels_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"wanted \(2, 3\)"):
        class_maps.cam(conv_scorer(), photos(), jnp.ones(shape, bool))
    with pytest.raises(ValueError, match=r"wanted \(2, 3\)"):
        check_labels(jnp.ones(shape, bool), 2, 3)
