from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_draw import FOLDER, cam_arrays, drawn
from toy_scorers import conv_scorer, linear_scorer, net_t, photos, t_image

from wsss_jax.explain import class_maps, gradient, normalise, perturb
from wsss_jax.ops import images as image_ops

ALL = jnp.ones((1, 3), bool)


@pytest.mark.parametrize(
    ("method", "first", "second"),
    [
        (gradient.grad_cam, [0.75, 0.5, -0.75, 0.5], [2.25, 1, 0.75, 1]),
        (gradient.hires_cam, [0.75, 0.5, -0.75, 0.5], [2.25, 1, 0.75, 1]),
        (gradient.xgrad_cam, [0.75, 0.5, -0.75, 0.5], [2.25, 1, 0.75, 1]),
        (gradient.grad_cam_pp, [1, 0.5, 0, 0.5], [5 / 3, 2 / 3, 1, 2 / 3]),
        (gradient.layer_cam, [1, 0.5, 0, 0.5], [2.25, 1, 0.75, 1]),
        (gradient.sharpen_focus, [1, 0.5, 0, 0.5], [2.25, 1, 0.75, 1]),
    ],
)
def test_net_t(method, first, second):
    maps = method(net_t(), t_image(), ALL)
    np.testing.assert_allclose(maps[0, ..., 0].reshape(-1), first, rtol=1e-6)
    np.testing.assert_allclose(maps[0, ..., 1].reshape(-1), second, rtol=1e-6)


def test_grad_cam_of_net_t_after_relu_and_min_max():
    final = normalise.min_max(gradient.grad_cam(net_t(), t_image(), ALL))
    np.testing.assert_allclose(final[0, ..., 0].reshape(-1), [1, 2 / 3, 0, 2 / 3], atol=1e-6)
    np.testing.assert_allclose(final[0, ..., 1].reshape(-1), [1, 1 / 6, 0, 1 / 6], atol=1e-6)


def test_grad_cam_pp_weights_of_net_t():
    a = net_t().features(t_image())
    first = jnp.broadcast_to(jnp.array([0.25, -0.25]), a.shape)
    second = jnp.broadcast_to(jnp.array([0.5, 0.25]), a.shape)
    np.testing.assert_allclose(gradient.grad_cam_pp_weights(a, first), [[0.25, 0]])
    np.testing.assert_allclose(gradient.grad_cam_pp_weights(a, second), [[1 / 3, 1 / 3]], rtol=1e-6)


def test_grad_cam_pp_equals_its_general_formula():
    keys = jax.random.split(jax.random.key(3))
    a, g = (jax.random.normal(key, (2, 3, 4, 5)) for key in keys)
    alpha = g**2 / (2 * g**2 + a.sum(axis=(1, 2), keepdims=True) * g**3)
    wanted = jnp.einsum("bhwk,bk->bhw", a, (alpha * jax.nn.relu(g)).sum(axis=(1, 2)))
    np.testing.assert_allclose(gradient.grad_cam_pp_map(a, g), wanted, rtol=2e-4, atol=1e-4)


@pytest.mark.parametrize(("total", "slope"), [(2.0, -1.0), (-2.0, 1.0), (0.0, 0.0)])
def test_grad_cam_pp_without_a_denominator_is_zero(total, slope):
    a = jnp.full((1, 1, 1, 1), total)
    assert gradient.grad_cam_pp_map(a, jnp.full((1, 1, 1, 1), slope)).item() == 0


def test_tiny_gradients_do_not_underflow_in_grad_cam_pp():
    g = jnp.full((1, 1, 1, 1), 1e-20)
    weights = gradient.grad_cam_pp_weights(jnp.ones_like(g), g)
    np.testing.assert_allclose(weights, [[0.5e-20]], rtol=1e-5)


def test_half_precision_features_are_weighed_in_full_precision():
    scorer = net_t()
    half = linear_scorer(
        lambda x: scorer.features(x).astype(jnp.bfloat16),
        jnp.array([[1, -1], [2, 1], [-1, 0.5]], jnp.bfloat16),
        jnp.array([0, 1, -0.5], jnp.bfloat16),
    )
    maps = gradient.grad_cam(half, t_image(), ALL)
    assert maps.dtype == jnp.float32
    np.testing.assert_allclose(maps, gradient.grad_cam(scorer, t_image(), ALL))


@pytest.mark.parametrize("labels", [[1, 1, 0], [1, 0, 0], [1, 1, 1]])
def test_min_max_from_gradients_equals_min_max_from_a_linear_head(labels):
    scorer, images = conv_scorer(), photos()
    rows = jnp.array([labels, [0, 1, 1]], bool)
    pairs = [
        (gradient.min_max_grad_cam, class_maps.min_max_cam),
        (gradient.d_min_max_grad_cam, class_maps.d_min_max_cam),
    ]
    for by_gradient, by_weights in pairs:
        wanted = by_weights(scorer, images, rows)
        np.testing.assert_allclose(by_gradient(scorer, images, rows), wanted, atol=1e-5)


def test_smooth_grad_cam_pp_of_a_linear_head_is_grad_cam_pp():
    smooth = partial(gradient.smooth_grad_cam_pp, key=jax.random.key(5), draws=3)
    maps = smooth(net_t(), t_image(), ALL)
    np.testing.assert_allclose(maps, gradient.grad_cam_pp(net_t(), t_image(), ALL), rtol=1e-5)


def test_one_pass_per_label_and_not_per_class():
    passes = []
    scorer = conv_scorer(classes=3)
    labels = jnp.array([[True, False, True], [False, True, False]])

    def weigh(a, g):
        jax.debug.callback(lambda: passes.append(1))
        return gradient.grad_cam_map(a, g)

    maps = gradient.explain_with(weigh, scorer, photos(), labels)
    jax.effects_barrier()
    assert len(passes) == 2
    every = gradient.grad_cam(scorer, photos(), jnp.ones((2, 3), bool))
    np.testing.assert_allclose(maps, jnp.where(labels[:, None, None], every, 0), rtol=1e-6)


WEIGHINGS = {
    "GradCAM": gradient.grad_cam_map,
    "GradCAMPlusPlus": partial(gradient.grad_cam_pp_map, epsilon=1e-6),
    "LayerCAM": gradient.layer_cam_map,
    "XGradCAM": gradient.xgrad_cam_map,
    "HiResCAM": gradient.hires_cam_map,
}


@cache
def golden():
    with np.load(FOLDER / "explanations.npz") as file:
        return dict(file)


@pytest.mark.parametrize("kind", ["relu", "signed"])
def test_maps_of_given_activations_and_gradients_equal_the_reference(kind):
    a, g = (jnp.asarray(x.transpose(0, 2, 3, 1)) for x in cam_arrays(kind))
    for name, weigh in WEIGHINGS.items():
        raw, final = (golden()[f"{kind}/{name}/{part}"] for part in ("raw", "final"))
        maps = weigh(a, g)
        # Sums of signed activations may nearly cancel in single precision.
        tolerance = 1e-4 if name == "XGradCAM" and kind == "signed" else 1e-5
        np.testing.assert_allclose(maps, raw, atol=tolerance * np.abs(raw).max(), err_msg=name)
        large = image_ops.resize(normalise.min_max(maps[..., None]), final.shape[1:])
        large = normalise.stretch(large)[..., 0]
        np.testing.assert_allclose(large, final, atol=tolerance, err_msg=name)


def test_maps_through_a_linear_head_equal_the_reference():
    a = jnp.asarray(cam_arrays("relu")[0].transpose(0, 2, 3, 1))
    weight, bias = drawn("fc.weight", (6, 8)), drawn("fc.bias", (6,))
    scorer = linear_scorer(lambda images: a, weight, bias)
    logits = golden()["linear/logits"]
    np.testing.assert_allclose(scorer.head(a), logits, atol=1e-5)
    labels = jnp.asarray(logits == logits.max(axis=1, keepdims=True))
    for name, method in (("GradCAM", gradient.grad_cam), ("AblationCAM", perturb.ablation_cam)):
        maps = method(scorer, photos(), labels).sum(axis=-1)
        tolerance = 1e-5 if name == "GradCAM" else 1e-4
        wanted = golden()[f"linear/{name}"]
        np.testing.assert_allclose(maps, wanted, atol=tolerance * np.abs(maps).max())
