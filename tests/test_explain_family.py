"""What holds for every explainer of the table; a new line there is tested here at once."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_scorers import conv_features, linear_scorer, photos

from wsss_jax.explain import EXPLAINERS, augmented, normalise, perturb, saliency, score_weighted

# Quick forms of the methods that repeat themselves.
QUICK = {
    "augmented_grad_cam": partial(
        augmented.augmented_grad_cam,
        settings=augmented.Augmented(views=3, iterations=15, chunk=2),
        key=jax.random.key(0),
    ),
    "rise": partial(perturb.rise, masks=12, cells=3, chunk=5, key=jax.random.key(0)),
    "smooth_grad": partial(saliency.smooth_grad, draws=2, key=jax.random.key(0)),
    "ss_cam": partial(score_weighted.ss_cam, draws=2, key=jax.random.key(0)),
    "integrated_gradients": partial(saliency.integrated_gradients, nodes=((0.2, 0.5), (0.8, 0.5))),
}
RANDOM = {"augmented_grad_cam", "rise", "smooth_grad", "ss_cam", "smooth_grad_cam_pp"}
PROPORTIONAL = {
    "augmented_grad_cam", "cam", "d_min_max_cam", "d_min_max_grad_cam", "grad_cam",
    "guided_gradient", "hires_cam", "integrated_gradients", "layer_cam", "min_max_cam",
    "min_max_grad_cam", "sharpen_focus", "smooth_grad", "vanilla_gradient", "xgrad_cam",
}  # fmt: skip
LABELS = jnp.array([[True, False, True], [True, True, True]])
Z = 4 * 6
NAMES = sorted(EXPLAINERS)


@cache
def weights():
    keys = jax.random.split(jax.random.key(9))
    return jax.random.normal(keys[0], (3, 4)), jax.random.normal(keys[1], (3,))


def explain_plainly(name, weight, bias, images, labels):
    scorer = linear_scorer(conv_features(), weight, bias)
    return QUICK.get(name, EXPLAINERS[name])(scorer, images, labels)


@cache
def compiled(name):
    return jax.jit(partial(explain_plainly, name))


@cache
def maps_of(name):
    return compiled(name)(*weights(), photos(), LABELS)


def close(maps, wanted):
    np.testing.assert_allclose(maps, wanted, rtol=1e-4, atol=1e-5 * float(np.abs(wanted).max()))


@pytest.mark.parametrize("name", NAMES)
def test_maps_are_finite_and_only_of_label_classes(name):
    maps = maps_of(name)
    assert maps.shape[0] == 2 and maps.shape[-1] == 3 and maps.dtype == jnp.float32
    assert maps.shape[1:3] in {(4, 6), (8, 12)}
    assert np.isfinite(maps).all()
    assert not maps[0, ..., 1].any() and maps[1].any(axis=(0, 1)).all()


@pytest.mark.parametrize("name", NAMES)
def test_the_other_images_of_the_batch_do_not_matter(name):
    for index in range(2):
        twice = jnp.array([index, index])
        maps = compiled(name)(*weights(), photos()[twice], LABELS[twice])
        close(maps, maps_of(name)[twice])


@pytest.mark.parametrize("name", NAMES)
def test_not_compiled_it_gives_the_same_maps(name):
    close(explain_plainly(name, *weights(), photos(), LABELS), maps_of(name))


@pytest.mark.parametrize("name", ["cam", "d_min_max_grad_cam", "ablation_cam"])
def test_an_image_alone_has_the_same_maps(name):
    close(explain_plainly(name, *weights(), photos()[1:], LABELS[1:]), maps_of(name)[1:])


# The ε-rule divides by y + ε sign(y), which jumps where rounding decides the sign of y.
@pytest.mark.parametrize("name", sorted(set(NAMES) - RANDOM - {"lrp_epsilon"}))
def test_mirrored_images_have_mirrored_maps(name):
    mirrored = compiled(name)(*weights(), photos()[:, :, ::-1], LABELS)
    close(mirrored, maps_of(name)[:, :, ::-1])


@pytest.mark.parametrize("name", NAMES)
def test_classes_in_another_order_have_the_same_maps(name):
    order = jnp.array([2, 0, 1])
    weight, bias = weights()
    maps = compiled(name)(weight[order], bias[order], photos(), LABELS[:, order])
    close(maps, maps_of(name)[..., order])


@pytest.mark.parametrize("name", NAMES)
def test_blank_images_give_finite_maps(name):
    for value in (0.0, 0.5):
        maps = compiled(name)(*weights(), jnp.full((2, 8, 12, 3), value, jnp.float32), LABELS)
        assert np.isfinite(maps).all()


@pytest.mark.parametrize("name", sorted(PROPORTIONAL))
def test_scores_three_times_as_large_show_the_same(name):
    weight, bias = weights()
    maps = compiled(name)(3 * weight, 3 * bias, photos(), LABELS)
    close(maps, 3 * maps_of(name))
    close(normalise.min_max(maps), normalise.min_max(maps_of(name)))


@pytest.mark.parametrize("name", NAMES)
def test_features_of_half_precision_give_maps_of_single_precision(name):
    """No promotion of types is left to chance: strict promotion would refuse it."""

    def run(weight, bias, images):
        scorer = linear_scorer(conv_features(), weight, bias)
        half = scorer._replace(
            features=lambda x: scorer.features(x).astype(jnp.bfloat16),
            head=lambda a: scorer.head(a.astype(jnp.float32)),
            class_maps=lambda a: scorer.class_maps(a.astype(jnp.float32)),
        )
        return QUICK.get(name, EXPLAINERS[name])(half, images, LABELS)

    assert jax.eval_shape(run, *weights(), photos()).dtype == jnp.float32


@pytest.mark.parametrize("name", ["grad_cam", "xgrad_cam", "hires_cam"])
def test_with_a_linear_head_it_is_cam_divided_by_the_cells(name):
    close(maps_of(name), maps_of("cam") / Z)


def closed_forms():
    weight, bias = weights()
    a = conv_features()(photos())
    pooled = a.mean(axis=(1, 2))
    logits = pooled @ weight.T + bias[None]
    positive = jax.nn.relu(weight)[None]
    contribution = weight[None] * pooled[:, None, :]
    per_class = {
        "sharpen_focus": jnp.broadcast_to(positive / Z, contribution.shape),
        "layer_cam": jnp.broadcast_to(positive / Z, contribution.shape),
        "grad_cam_pp": positive / (2 + contribution),
        "smooth_grad_cam_pp": positive / (2 + contribution),
        "ablation_cam": contribution / jnp.abs(logits)[..., None],
    }
    among = LABELS.astype(jnp.float32)[:, None, None, :]
    return {
        name: jnp.einsum("bhwk,bck->bhwc", a, rows, precision="highest") * among
        for name, rows in per_class.items()
    }


@pytest.mark.parametrize(
    "name", ["sharpen_focus", "layer_cam", "grad_cam_pp", "smooth_grad_cam_pp", "ablation_cam"]
)
def test_with_a_linear_head_it_has_its_closed_form(name):
    wanted = closed_forms()[name]
    # Smoothed: the gradient of a linear head does not depend on the noise.
    np.testing.assert_allclose(maps_of(name), wanted, rtol=1e-3, atol=1e-5)
