"""Relevance propagation: rules by hand, conservation, batches, and the reference's numbers."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_transformers import photos, small, stored_network

from wsss_jax.explain import attention, relevance
from wsss_jax.explain import relevance_rules as rules
from wsss_jax.explain.relevance_rules import BASELINE, CHEFER

KERNEL = jnp.array([[1.0, 0.5], [-1.0, 2.0]])  # (in, out)
ONES = jnp.ones((1, 2))


@cache
def reference():
    """Relevance maps of the reference network for one class per image."""
    model, images, labels, stored = stored_network()
    attentive = model.attentive()

    @jax.jit
    def run(images, labels):
        _, blocks = attentive.record(images)
        at = relevance.propagated(attentive, blocks, labels.astype(jnp.float32), CHEFER)[0]
        args = (attentive, images, labels)
        return {
            "attn_cam": jnp.stack(at, axis=1),
            "attribution_start0": relevance.attribution(*args, start_layer=0),
            "attribution_start1": relevance.attribution(*args),
            "lrp_rollout_ours": relevance.lrp_rollout(*args),
            "full_lrp_ours": relevance.full_lrp(*args),
            "full_lrp_orig": relevance.full_lrp(*args, rules=BASELINE),
            "partial_lrp_orig": relevance.partial_lrp(*args),
        }

    return run(images, labels), stored


@pytest.mark.parametrize(
    "name",
    ["attn_cam", "attribution_start0", "attribution_start1", "lrp_rollout_ours", "full_lrp_ours",
     "full_lrp_orig", "partial_lrp_orig"],
)  # fmt: skip
def test_relevance_equals_the_reference(name):
    """The z-rule divides by sums that may be nearly zero: rounding grows, most in plain LRP."""
    found, stored = reference()
    wanted, found = stored[name], np.asarray(found[name])
    found = (found if name == "attn_cam" else found.sum(axis=-1)).reshape(wanted.shape)
    share = 1e-2 if name == "full_lrp_orig" else 1e-3
    assert np.abs(found - wanted).max() < share * np.abs(wanted).max()


def test_linear_rules_by_hand():
    x = jnp.array([[1.0, 2.0]])
    np.testing.assert_allclose(rules.linear_shared(x, KERNEL, ONES), [[10 / 9, 8 / 9]], atol=1e-6)
    x = jnp.array([[1.0, -2.0]])
    np.testing.assert_allclose(rules.linear_shared(x, KERNEL, ONES), [[4 / 3, 2 / 3]], atol=1e-6)
    np.testing.assert_allclose(rules.linear_separate(x, KERNEL, ONES), [[2.0, 1.0]], atol=1e-6)


def test_a_linear_layer_without_positive_contribution_hands_nothing_on():
    x, kernel = jnp.array([[1.0, -2.0]]), jnp.array([[-1.0], [3.0]])
    np.testing.assert_array_equal(rules.linear_shared(x, kernel, jnp.ones((1, 1))), [[0, 0]])
    np.testing.assert_array_equal(rules.linear_separate(x, kernel, jnp.ones((1, 1))), [[0, 0]])


def test_linear_layers_sums_and_clones_conserve_relevance():
    keys = jax.random.split(jax.random.key(0), 5)
    x, y, r = (jax.random.normal(key, (3, 4, 24)) for key in keys[:3])
    kernel, r_out = jax.random.normal(keys[3], (24, 5)), jax.random.uniform(keys[4], (3, 4, 5))
    total = lambda part: part.sum(axis=(1, 2))  # noqa: E731
    out = rules.linear_shared(x, kernel, r_out)
    np.testing.assert_allclose(total(out), total(r_out), rtol=1e-5)
    a, b = rules.add_rescaled(x, y, r)
    np.testing.assert_allclose(total(a) + total(b), total(r), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(rules.clone(x, r, 2 * r), 3 * r, rtol=1e-3)
    np.testing.assert_allclose(a[1:], rules.add_rescaled(x[1:], y[1:], r[1:])[0], rtol=1e-3)


def test_both_factors_of_a_product_get_half():
    keys = jax.random.split(jax.random.key(0), 3)
    a, b = (jax.random.uniform(key, (4, 4)) for key in keys[:2])
    r = jax.random.uniform(keys[2], (4, 4))
    to_a, to_b = rules.product(jnp.matmul, a, b, r)
    np.testing.assert_allclose([to_a.sum(), to_b.sum()], [r.sum() / 2] * 2, rtol=1e-5)


def test_the_bounded_rule_conserves_relevance():
    keys = jax.random.split(jax.random.key(0), 2)
    x, kernel = jax.random.uniform(keys[0], (3, 6)), jax.random.normal(keys[1], (6, 5))
    bounds = jnp.broadcast_to(jnp.array([0.0, 1.0]), (3, 2))
    out = rules.bounded(x, kernel, jnp.ones((3, 5)), bounds)
    np.testing.assert_allclose(out.sum(axis=-1), 5, rtol=1e-4)


def test_attribution_by_hand():
    a1 = jnp.array([[0.5, 0.25, 0.25], [0.2, 0.6, 0.2], [0.1, 0.3, 0.6]])[None, None]
    a2 = jnp.array([[0.4, 0.4, 0.2], [0.3, 0.5, 0.2], [0.25, 0.25, 0.5]])[None, None]
    g1, g2 = (
        jnp.zeros((1, 1, 3, 3)).at[..., 0, :].set(jnp.array(g))
        for g in ((0.0, 1, -1), (1.0, 2, -1))
    )
    matrices = relevance._weighed([g1, g2], [a1, a2])
    row = attention.class_row(matrices, start_layer=0)
    np.testing.assert_allclose(row, [[1.4, 1.15, 0]], atol=1e-6)


METHODS = (
    relevance.attribution,
    relevance.gradient_attention,
    relevance.lrp_rollout,
    relevance.partial_lrp,
    relevance.token_lrp,
    relevance.full_lrp,
)


@pytest.fixture(scope="module")
def maps():
    """Maps of the small network for a batch, its second image, and a canvas around the second."""
    model, images = small(), photos()
    labels = jnp.array([[True, False, True, False], [False, True, True, False]])

    # The older emitters of our tests (conftest.py) round worse than those that users have.
    @partial(jax.jit, compiler_options={"xla_backend_extra_options": ""})
    def run(images, labels, inside=None):
        return [method(model.attentive(inside), images, labels) for method in METHODS]

    canvas = jnp.full((1, 48, 64, 3), jnp.nan).at[:, :32, :48].set(images[1])
    inside = jnp.zeros((1, 48, 64), bool).at[:, :32, :48].set(True)
    return run(images, labels), run(images[1:], labels[1:]), run(canvas, labels[1:], inside), labels


def test_a_batch_equals_its_images_and_absent_classes_are_zero(maps):
    together, alone, _, labels = maps
    for batch, single in zip(together, alone, strict=True):
        assert bool(jnp.isfinite(batch).all())
        # Float32 carries no further: 2e-4 between batch sizes was seen with jax 0.12.
        scale = float(jnp.abs(single).max())
        np.testing.assert_allclose(batch[1:], single, atol=1e-3 * scale)
        assert not np.asarray(batch)[~np.broadcast_to(labels[:, None, None], batch.shape)].any()
    assert together[-1].shape == (2, 32, 48, 4) and together[0].shape == (2, 2, 3, 4)


def test_padding_changes_nothing(maps):
    _, alone, canvas, _ = maps
    for tight, wide in zip(alone, canvas, strict=True):
        h, w = tight.shape[1:3]
        scale = float(jnp.abs(tight).max())
        # The rules divide by sums near zero; 2e-3 was seen where XLA does not optimise.
        np.testing.assert_allclose(wide[:, :h, :w], tight, atol=5e-3 * scale)
        assert not np.asarray(wide[:, h:]).any() and not np.asarray(wide[:, :, w:]).any()


def test_all_classes_by_vmap_equal_one_by_one():
    attentive, images = small().attentive(), photos(1)

    @jax.jit
    def run(images):
        _, blocks = attentive.record(images)
        walk = lambda row: relevance.propagated(attentive, blocks, row[None], CHEFER)[1]  # noqa: E731
        return jax.vmap(walk)(jnp.eye(4)).sum(axis=-1)[:, 0, 1:]

    maps = relevance.token_lrp(attentive, images, jnp.ones((1, 4), bool))
    wanted = maps.reshape(6, 4).T
    # The rules divide by sums near zero, so another order of additions shows: 1e-3 was seen.
    np.testing.assert_allclose(run(images), wanted, atol=1e-2 * float(jnp.abs(wanted).max()))


def test_pixels_of_a_hybrid_are_refused():
    attentive = small().attentive()._replace(embedding=None)
    with pytest.raises(ValueError, match="use token_lrp"):
        relevance.full_lrp(attentive, photos(), jnp.ones((2, 4), bool))
