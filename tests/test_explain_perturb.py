from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_scorers import conv_scorer, net_t, photos, t_image

from wsss_jax.explain import perturb, score_weighted
from wsss_jax.types import Scorer

ALL = jnp.ones((1, 3), bool)


def explained(method, scorer, images, labels, **settings):
    """One compilation instead of one per operation."""
    return jax.jit(partial(method, scorer, **settings))(images, labels)


def test_score_cam_of_net_t():
    maps = explained(score_weighted.score_cam, net_t(), t_image(), ALL)
    wanted = [3.555858, 1.703905, 0.444142, 1.703905]
    np.testing.assert_allclose(maps[0, ..., 0].reshape(-1), wanted, rtol=1e-5)
    np.testing.assert_allclose(maps[0, ..., 1].reshape(-1), wanted, rtol=1e-5)


def test_masked_logits_of_net_t():
    logits = score_weighted.ScoreCam(weigh=score_weighted.plain_scores)
    maps = explained(score_weighted.score_cam, net_t(), t_image(), ALL, settings=logits)
    a = t_image()[0, ..., :2]
    for index, weights in enumerate(([1.25, -0.5], [4.25, 2.5])):
        np.testing.assert_allclose(maps[0, ..., index], a @ jnp.array(weights), rtol=1e-5)


def test_softmax_weights_ignore_a_constant_added_to_every_logit():
    scorer = net_t()
    raised = scorer._replace(head=lambda a: scorer.head(a) + 100)
    maps = explained(score_weighted.score_cam, scorer, t_image(), ALL)
    again = explained(score_weighted.score_cam, raised, t_image(), ALL)
    np.testing.assert_allclose(again, maps, rtol=1e-4)


@pytest.mark.parametrize("name", sorted(score_weighted.SCORE_CAMS))
def test_every_score_cam_survives_a_constant_channel(name):
    flat = net_t()._replace(features=lambda x: x[..., :2].at[..., 1].set(2.0))
    settings = score_weighted.SCORE_CAMS[name]
    maps = explained(score_weighted.score_cam, flat, t_image(), ALL, settings=settings)
    assert np.isfinite(maps).all()


def test_score_cam_does_not_depend_on_the_chunk():
    scorer, images = conv_scorer(), photos(1)
    maps = [explained(score_weighted.score_cam, scorer, images, ALL, chunk=n) for n in (3, 16)]
    np.testing.assert_allclose(*maps, rtol=1e-4, atol=1e-5)


def test_the_authors_score_cam_equals_a_plain_loop():
    scorer, images = conv_scorer(channels=3), photos(1, (4, 6))
    maps = explained(
        score_weighted.score_cam,
        scorer,
        images,
        ALL,
        settings=score_weighted.SCORE_CAMS["authors_code"],
    )
    large = jax.image.resize(scorer.features(images), (1, 4, 6, 3), "bilinear")
    wanted = 0
    for channel in np.moveaxis(np.asarray(large), -1, 0):
        if channel.max() > channel.min():
            mask = (channel - channel.min()) / (channel.max() - channel.min())
            score = jax.nn.softmax(scorer.head(scorer.features(images * mask[..., None])))
            wanted = wanted + np.asarray(score)[:, None, None, :] * channel[..., None]
    np.testing.assert_allclose(maps, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("disturb", [score_weighted.noisy_activation, score_weighted.noisy_input])
def test_ss_cam_without_noise_is_score_cam(disturb):
    settings = score_weighted.ScoreCam()
    quiet = explained(
        score_weighted.ss_cam, net_t(), t_image(), ALL,
        key=jax.random.key(0), disturb=disturb, settings=settings, draws=2, noise=0.0,
    )  # fmt: skip
    wanted = explained(score_weighted.score_cam, net_t(), t_image(), ALL, settings=settings)
    np.testing.assert_allclose(quiet, wanted, rtol=1e-4, atol=1e-5)


def test_ablation_cam_of_net_t():
    maps = explained(perturb.ablation_cam, net_t(), t_image(), ALL)
    np.testing.assert_allclose(maps[0, ..., 0].reshape(-1), [7, 4, -3, 4], rtol=1e-5)
    wanted = [2.833333, 1.333333, 0.5, 1.333333]
    np.testing.assert_allclose(maps[0, ..., 1].reshape(-1), wanted, rtol=1e-5)


def test_ablation_keeps_its_sign_where_the_score_is_negative():
    ours = explained(perturb.ablation_cam, net_t(), t_image(), ALL)[..., 2]
    theirs = explained(perturb.ablation_cam, net_t(), t_image(), ALL, relative=perturb.to_score)[
        ..., 2
    ]
    plain = explained(perturb.ablation_cam, net_t(), t_image(), ALL, relative=perturb.undivided)[
        ..., 2
    ]
    np.testing.assert_allclose(ours, -theirs, rtol=1e-6)
    np.testing.assert_allclose(ours, plain / 2, rtol=1e-6)


def test_rise_of_a_linear_score_has_the_expected_value():
    a = jnp.array([1.0, 2, 3, 4])
    scorer = Scorer(features=lambda x: x, head=lambda x: (x[..., 0].reshape(-1, 4) @ a)[:, None])
    key, count = jax.random.key(0), 4000

    def independent(key, size, *, cells, keep):
        return jax.random.bernoulli(key, keep, size).astype(jnp.float32)

    maps = explained(
        perturb.rise, scorer, jnp.ones((1, 2, 2, 3)), jnp.ones((1, 1), bool),
        key=key, masks=count, draw=independent, score=lambda x: x, chunk=700,
    )  # fmt: skip
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(count))
    masks = jax.vmap(lambda k: independent(k, (2, 2), cells=0, keep=0.5))(keys).reshape(count, 4)
    wanted = (masks @ a) @ masks / (count * 0.5)
    np.testing.assert_allclose(maps.reshape(-1), wanted, rtol=1e-4)
    np.testing.assert_allclose(maps.reshape(-1), [5.5, 6, 6.5, 7], rtol=0.05)


def test_rise_does_not_depend_on_the_chunk():
    run = partial(
        explained, perturb.rise, conv_scorer(), photos(), jnp.ones((2, 3), bool), masks=10
    )
    key = jax.random.key(4)
    np.testing.assert_allclose(run(key=key, chunk=4), run(key=key, chunk=10), rtol=1e-5)


def test_rise_masks_lie_in_the_unit_interval_and_keep_their_share():
    keys = jax.random.split(jax.random.key(1), 400)
    masks = jax.vmap(lambda key: perturb.rise_mask(key, (9, 13), cells=3, keep=0.25))(keys)
    assert masks.shape == (400, 9, 13)
    assert masks.min() >= 0 and masks.max() <= 1 + 1e-6
    np.testing.assert_allclose(masks.mean(), 0.25, atol=0.03)
