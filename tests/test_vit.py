"""Vision transformers: any image size, padding, weight names."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from wsss_jax.backbones import vit
from wsss_jax.backbones.vit import ViT
from wsss_jax.models.token_classifier import TokenClassifier
from wsss_jax.ops import positions as vit_positions
from wsss_jax.ops import tokens
from wsss_jax.types import Attentive
from wsss_jax.weights import loading as weights

COUNTS = {"tiny": 5717416, "small": 22050664, "base": 86567656, "large": 304326632}


def tiny(**keywords):
    """Two narrow blocks: everything but the size."""
    return ViT(24, 2, 3, rngs=nnx.Rngs(0), **keywords)


@cache
def classifier():
    """A small classifier, and its logits and last attention as one jitted function."""
    model = TokenClassifier(tiny(grid=(3, 3)), 4, rngs=nnx.Rngs(1))
    graph, params = nnx.split(model)

    @jax.jit
    def run(images, inside=None):
        bound = nnx.merge(graph, params)
        logits, blocks = bound.record(images, inside)
        return logits, bound(images, inside), blocks[-1].attention

    return model, run


@pytest.mark.parametrize("name", sorted(vit.SIZES))
def test_parameter_counts_are_the_published_ones(name):
    make = lambda: TokenClassifier(vit.build(name)(rngs=nnx.Rngs(0)), 1000, rngs=nnx.Rngs(0))  # noqa: E731
    leaves = jax.tree.leaves(nnx.state(nnx.eval_shape(make)))
    assert sum(leaf.size for leaf in leaves) == COUNTS[name]


def test_images_of_any_size_give_their_own_grid():
    model = tiny()
    graph, params = nnx.split(model)
    run = jax.jit(lambda params, images: nnx.merge(graph, params)(images)[-1])
    for size, grid in (((33, 47), (3, 3)), ((16, 64), (1, 4))):
        image = jax.random.normal(jax.random.key(0), (1, *size, 3))
        assert run(params, image).shape == (1, *grid, 24)


def test_positions_keep_their_values_on_their_own_grid_and_a_slope_on_another():
    position = jax.random.normal(jax.random.key(0), (5, 4, 2))
    np.testing.assert_array_equal(vit_positions.antialiased(position, (5, 4))[0], position)
    cells = jnp.zeros((1, 7, 6), bool).at[:, :5, :4].set(True)
    canvas = vit_positions.antialiased(position, (7, 6), cells)[0]
    np.testing.assert_allclose(canvas[:5, :4], position, atol=1e-6)
    assert not np.asarray(canvas[5:]).any() and not np.asarray(canvas[:, 4:]).any()
    slope = jnp.broadcast_to(jnp.arange(4.0)[:, None, None], (4, 4, 1))
    finer = vit_positions.antialiased(slope, (8, 4))[0, 3:5, 0, 0]  # the border bends a cubic
    np.testing.assert_allclose(finer, [1.25, 1.75], atol=1e-5)


def test_padding_changes_nothing():
    image = jax.random.uniform(jax.random.key(0), (2, 33, 47, 3))
    canvas = jnp.full((2, 64, 80, 3), jnp.nan).at[:, :33, :47].set(image)
    inside = jnp.zeros((2, 64, 80), bool).at[:, :33, :47].set(True)
    _, run = classifier()
    logits, attention = run(canvas, inside)[1:]
    np.testing.assert_allclose(logits, run(image)[1], atol=1e-5)
    real = np.zeros((4, 5), bool)
    real[:3, :3] = True
    padding = ~np.concatenate([[True], real.ravel()])
    assert not np.asarray(attention)[..., padding].any()


def test_record_gives_the_same_logits_and_rows_of_attention_sum_to_one():
    _, run = classifier()
    recorded, logits, attention = run(jax.random.uniform(jax.random.key(0), (2, 32, 48, 3)))
    np.testing.assert_allclose(recorded, logits, atol=1e-6)
    assert attention.shape == (2, 3, 7, 7)
    np.testing.assert_allclose(attention.sum(axis=-1), 1, atol=1e-6)


def test_a_row_that_only_fills_the_batch_up_is_finite():
    _, run = classifier()
    images = jnp.zeros((2, 33, 47, 3))
    logits = run(images, jnp.zeros(images.shape[:3], bool).at[0].set(True))[1]
    assert bool(jnp.isfinite(logits).all())


def test_gradients_are_finite_equal_with_remat_and_reach_every_parameter():
    image = jax.random.normal(jax.random.key(1), (1, 32, 32, 3))

    def gradient(remat):
        graph, params = nnx.split(tiny(remat=remat))
        loss = lambda p: jnp.square(nnx.merge(graph, p)(image)[-1]).sum()  # noqa: E731
        return jax.jit(jax.grad(loss))(params)

    kept, again = gradient(False), gradient(True)
    for (path, a), b in zip(jax.tree.leaves_with_path(kept), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
        assert bool(jnp.isfinite(a).all()) and bool((a != 0).any()), path


def test_a_block_has_the_same_gradients_with_and_without_a_record(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    weights = tiny().encoder.blocks[0].weights()
    x = jax.random.normal(jax.random.key(1), (2, 5, weights.norm1.kernel.shape[0]))
    keys = jnp.array([5 * [True], 3 * [True] + 2 * [False]])

    def gradient(x, weights, block):
        def loss(x, weights):
            out = block(weights, x, heads=3, keys=keys)
            return jnp.square(out if block is tokens.advance else out[0]).sum()

        return jax.grad(loss, argnums=(0, 1))(x, weights)

    run = jax.jit(gradient, static_argnums=2)
    with_record, without = run(x, weights, tokens.block), run(x, weights, tokens.advance)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), without, with_record)


def test_bfloat16_stays_close():
    model = tiny()
    graph, params = nnx.split(model)
    run = jax.jit(lambda params, images: nnx.merge(graph, params)(images)[-1])
    image = jax.random.normal(jax.random.key(0), (1, 32, 32, 3))
    exact, coarse = run(params, image), run(params, image.astype(jnp.bfloat16))
    assert coarse.dtype == jnp.bfloat16
    assert np.abs(coarse.astype(jnp.float32) - exact).mean() < 0.1 * np.abs(exact).mean()


def test_attentive_is_bound_to_the_batch():
    model, _ = classifier()
    attentive = model.attentive()
    assert isinstance(attentive, Attentive)
    images = jax.random.uniform(jax.random.key(0), (2, 20, 32, 3), minval=0.25)
    cut, bounds = attentive.embedding.patches(images)
    assert cut.shape == (2, 2, 2, 16, 16, 3)
    np.testing.assert_allclose(bounds[:, 0], 2 * images.min(axis=(1, 2, 3)) - 1, atol=1e-6)


def timm_arrays(model):
    """Arrays in timm's names and layout, the parameters of a model turned back by hand."""
    e = model.backbone.encoder
    out = {
        "cls_token": e.token[...][None, None],
        "pos_embed": jnp.concatenate(
            [e.token_position[...][None], e.position[...].reshape(-1, 24)]
        )[None],
        "patch_embed.proj.weight": model.backbone.embed.kernel[...]
        .reshape(16, 16, 3, 24)
        .transpose(3, 2, 0, 1),
        "patch_embed.proj.bias": model.backbone.embed.bias[...],
        "norm.weight": e.norm.scale[...],
        "norm.bias": e.norm.bias[...],
        "head.weight": model.kernel[...].T,
        "head.bias": model.bias[...],
    }
    names = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
    for n, block in enumerate(e.blocks):
        for name, layer in zip(names, block.weights()[:-1], strict=True):
            out[f"blocks.{n}.{name}.weight"] = layer.kernel.T
            out[f"blocks.{n}.{name}.bias"] = layer.bias
    return {name: np.asarray(x) for name, x in out.items()}


def google_arrays(model, *, newer):
    """The same in Google's names, of the first files or of big_vision."""
    e = model.backbone.encoder
    prefix, attention = (
        ("params/img/", "MHDPA_0") if newer else ("", "MultiHeadDotProductAttention_1")
    )
    norm2, mlp = ("LayerNorm_1", "MlpBlock_0") if newer else ("LayerNorm_2", "MlpBlock_3")
    position = "pos_embedding" if newer else "Transformer/posembed_input/pos_embedding"
    timm = timm_arrays(model)
    out = {
        "cls": timm["cls_token"],
        position: timm["pos_embed"],
        "embedding/kernel": model.backbone.embed.kernel[...].reshape(16, 16, 3, 24),
        "embedding/bias": timm["patch_embed.proj.bias"],
        "Transformer/encoder_norm/scale": timm["norm.weight"],
        "Transformer/encoder_norm/bias": timm["norm.bias"],
        "head/kernel": model.kernel[...],
        "head/bias": timm["head.bias"],
    }
    for n, block in enumerate(e.blocks):
        root, w = f"Transformer/encoderblock_{n}/", block.weights()
        for name, norm in (("LayerNorm_0", w.norm1), (norm2, w.norm2)):
            out |= {f"{root}{name}/scale": norm.kernel, f"{root}{name}/bias": norm.bias}
        for m, layer in enumerate((w.expand, w.contract)):
            out |= {f"{root}{mlp}/Dense_{m}/kernel": layer.kernel}
            out |= {f"{root}{mlp}/Dense_{m}/bias": layer.bias}
        kernel, bias = w.query_key_value.kernel.reshape(24, 3, 3, 8), w.query_key_value.bias
        for m, name in enumerate(("query", "key", "value")):
            out[f"{root}{attention}/{name}/kernel"] = kernel[:, m]
            out[f"{root}{attention}/{name}/bias"] = bias.reshape(3, 3, 8)[m]
        out[f"{root}{attention}/out/kernel"] = w.project.kernel.reshape(3, 8, 24)
        out[f"{root}{attention}/out/bias"] = w.project.bias
    return {prefix + name: np.asarray(x) for name, x in out.items()}


def stacked(arrays):
    """big_vision's scanned form: one array for all blocks."""
    out = {name: x for name, x in arrays.items() if "encoderblock" not in name}
    for name in (name for name in arrays if "encoderblock_0" in name):
        both = [arrays[name.replace("encoderblock_0", f"encoderblock_{n}")] for n in range(2)]
        out[name.replace("encoderblock_0", "encoderblock")] = np.stack(both)
    return out


@pytest.mark.parametrize("layout", ["timm", "google", "big_vision", "stacked"])
def test_every_layout_fills_the_same_network(layout):
    model, _ = classifier()
    arrays = {
        "timm": lambda: timm_arrays(model),
        "google": lambda: google_arrays(model, newer=False),
        "big_vision": lambda: google_arrays(model, newer=True),
        "stacked": lambda: stacked(google_arrays(model, newer=True)),
    }[layout]()
    empty = nnx.eval_shape(lambda: TokenClassifier(tiny(grid=(3, 3)), 4, rngs=nnx.Rngs(7)))
    weights.fill(empty, arrays)
    for a, b in zip(
        jax.tree.leaves(nnx.state(model)), jax.tree.leaves(nnx.state(empty)), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    backbone = nnx.eval_shape(lambda: tiny(grid=(5, 4)))
    weights.fill(backbone, arrays)  # the file's classifier is not wanted, positions move
    assert backbone.encoder.position.shape == (5, 4, 24)


def test_one_error_lists_everything_that_does_not_fit():
    model, _ = classifier()
    arrays = timm_arrays(model)
    del arrays["norm.bias"]
    arrays |= {"extra": np.zeros(3), "head.weight": np.zeros((7, 24), np.float32)}
    before = np.asarray(model.kernel[...])
    with pytest.raises(ValueError) as error:
        weights.fill(model, arrays)
    text = str(error.value)
    assert "norm.bias: missing" in text and "extra: in the file, used by nothing" in text
    assert "(7, 24)" in text and "(24, 4)" in text
    np.testing.assert_array_equal(model.kernel[...], before)
    with pytest.raises(ValueError, match="extra"):
        weights.fill(tiny(grid=(3, 3)), arrays)


def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match="output_stride is 8"):
        tiny(output_stride=8)
    with pytest.raises(ValueError, match="at least one"):
        TokenClassifier(tiny(), 0, rngs=nnx.Rngs(0))
