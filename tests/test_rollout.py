"""Attention explanations: toys by hand, properties, and the reference implementation's maps."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_transformers import photos, small, stored_network

from wsss_jax.explain import attention, gradient

METHODS = (
    attention.raw_attention,
    attention.rollout,
    attention.attention_grad_cam,
    attention.getam,
    attention.legrad,
)
A1 = jnp.array([[0.5, 0.25, 0.25], [0.2, 0.6, 0.2], [0.1, 0.3, 0.6]])[None]
A2 = jnp.array([[0.4, 0.4, 0.2], [0.3, 0.5, 0.2], [0.25, 0.25, 0.5]])[None]


@cache
def reference():
    """Everything read off the reference network's attention, in one compilation."""
    model, images, labels, stored = stored_network()
    attentive = model.attentive()

    @jax.jit
    def run(images, labels):
        blocks, gradients = attention.differentiated(attentive, images, labels)
        return {
            "logits": attentive.record(images)[0],
            "attn": jnp.stack([seen.attention for seen in blocks], axis=1),
            "attn_grad": jnp.stack(gradients(labels.astype(jnp.float32)), axis=1),
            "rollout_start0": attention.rollout(attentive, images, labels, start_layer=0),
            "rollout_start1": attention.rollout(attentive, images, labels),
            "raw_attention_last": attention.raw_attention(attentive, images, labels),
            "attn_gradcam": attention.attention_grad_cam(attentive, images, labels),
            "grad_cam": gradient.grad_cam(model.last_norm(images), images, labels),
        }

    return run(images, labels), stored


@pytest.mark.parametrize("name", ["logits", "attn", "attn_grad"])
def test_the_reference_network_is_reproduced(name):
    found, stored = reference()
    close(found[name], stored[name])


@pytest.mark.parametrize(
    "name",
    ["rollout_start0", "rollout_start1", "raw_attention_last", "attn_gradcam", "grad_cam"],
)
def test_maps_equal_the_reference(name):
    found, stored = reference()
    close(np.asarray(found[name]).sum(axis=-1).reshape(stored[name].shape), stored[name])


def close(found, wanted, tolerance=1e-4):
    assert np.abs(np.asarray(found) - wanted).max() < tolerance * np.abs(wanted).max()


def test_rollout_by_hand():
    matrices = [attention.rolled(a[:, None]) for a in (A1, A2)]
    row = attention.class_row(matrices, start_layer=0)
    np.testing.assert_allclose(row, [[0.55, 0.2625, 0.1875]], atol=1e-6)
    np.testing.assert_allclose(attention.class_row(matrices, start_layer=1)[0], matrices[1][0, 0])


def test_getam_of_one_block_by_hand():
    """Two heads, two patches: mean of relu(g A) times mean of relu(g)."""
    attention_row = jnp.array([[[0.5, 0.25, 0.25], [0.2, 0.2, 0.6]]])
    gradient_row = jnp.array([[[1.0, 4.0, -2.0], [0.0, 2.0, 1.0]]])
    # relu(g A): (0.5, 1, 0) and (0, 0.4, 0.6); relu(g): (1, 4, 0) and (0, 2, 1); means, multiplied.
    row = attention.getam_row(attention_row, gradient_row)
    np.testing.assert_allclose(row, [[0.25 * 0.5, 0.7 * 3, 0.3 * 0.5]], rtol=1e-6)


def straightforward_legrad(model, image, label):
    """LeGrad of one image, written out: one block, one gradient at a time, from the records."""
    attentive, maps = model.attentive(), []

    def norm(x, weights):
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / jnp.sqrt((centred**2).mean(-1, keepdims=True) + weights.form.epsilon)
        return scaled * weights.kernel[None] + weights.bias[None]

    for seen in attentive.record(image[None])[1]:
        one, (expand, contract) = seen.weights, (seen.weights.expand, seen.weights.contract)

        def score(attention, seen=seen, one=one, expand=expand, contract=contract):
            heads = [a @ v for a, v in zip(attention, seen.value[0], strict=True)]
            mixed = jnp.concatenate(heads, axis=1) @ one.project.kernel + one.project.bias[None]
            x = seen.tokens[0] + mixed
            hidden = norm(x, one.norm2) @ expand.kernel + expand.bias[None]
            hidden = jax.nn.gelu(hidden, approximate=False)
            x = x + hidden @ contract.kernel + contract.bias[None]
            token = norm(x.mean(0, keepdims=True), attentive.norm)
            return (token @ attentive.head.kernel + attentive.head.bias[None])[0, label]

        gradient = jax.grad(score)(seen.attention[0])
        maps.append(jnp.maximum(gradient, 0).mean((0, 1))[1:])
    return jnp.stack(maps).mean(0).reshape(2, 3)


def test_legrad_equals_its_definition_written_out():
    model, images = small(), photos()
    labels = jnp.array([[True, False, True, False], [False, False, True, False]])
    found = jax.jit(lambda x, y: attention.legrad(model.attentive(), x, y))(images, labels)
    for row, label in ((0, 0), (0, 2), (1, 2)):
        wanted = straightforward_legrad(model, images[row], label)
        np.testing.assert_allclose(found[row, ..., label], wanted, rtol=1e-3, atol=1e-7)
    assert not np.asarray(found)[1, ..., 0].any() and np.asarray(found).max() > 0
    with pytest.raises(ValueError, match="start_layer is 2, wanted 0 to 1"):
        attention.legrad(model.attentive(), images, labels, start_layer=2)


@pytest.fixture(scope="module")
def maps():
    """Maps of the small network: both images, the second alone, and eager."""
    model, images = small(), photos()
    labels = jnp.array([[True, False, True, False], [False, False, True, False]])

    @jax.jit
    def run(images, labels):
        attentive = model.attentive()
        return [method(attentive, images, labels) for method in METHODS]

    return run(images, labels), run(images[1:], labels[1:]), labels


def test_a_batch_equals_its_images_and_absent_classes_are_zero(maps):
    together, alone, labels = maps
    for batch, single in zip(together, alone, strict=True):
        assert batch.shape == (2, 2, 3, 4)
        np.testing.assert_allclose(batch[1:], single, atol=1e-6)
        assert not np.asarray(batch)[~np.broadcast_to(labels[:, None, None], batch.shape)].any()
        assert np.asarray(batch)[0, ..., 0].any()


def test_rows_of_rollout_sum_to_one():
    layers = jax.nn.softmax(jax.random.normal(jax.random.key(0), (4, 2, 3, 5, 5)), axis=-1)
    row = attention.class_row([attention.rolled(a) for a in layers], start_layer=0)
    np.testing.assert_allclose(row.sum(axis=-1), 1, atol=1e-6)


def test_a_missing_layer_and_wrong_labels_are_refused():
    with pytest.raises(ValueError, match="start_layer is 2, wanted 0 to 1"):
        attention.class_row([A1, A2], start_layer=2)
    with pytest.raises(ValueError, match=r"wanted \(2, 4\)"):
        jax.eval_shape(
            lambda x, y: attention.rollout(small().attentive(), x, y),
            photos(),
            jnp.ones((1, 4), bool),
        )
