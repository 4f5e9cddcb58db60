"""Families of vision transformers: DINOv2, CLIP, DeiT; their outputs, maps and weight names."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from golden_weights import assert_close, filled

from wsss_jax.backbones import vit
from wsss_jax.explain import attention, relevance
from wsss_jax.models import build
from wsss_jax.models.token_classifier import TokenClassifier
from wsss_jax.ops import positions as vit_positions
from wsss_jax.ops import tokens
from wsss_jax.types import Form
from wsss_jax.weights import import_names
from wsss_jax.weights import loading as weights

WIDTH = 12
REGISTERS = vit.Family(patch=4, grid=3, further=2, resample=vit_positions.torch_cubic)
CLIP = vit.CLIP_QUICK._replace(patch=4, grid=3)


def test_dinov2_gives_the_reference_tokens(shared, monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    with np.load(shared / "golden/networks/dinov2_vits14.npz") as file:
        stored = {name: file[name] for name in file.files}
    path = shared / "weights/dinov2_vits14_fp16.npz"
    module = build.backbone("dinov2_vits14", rngs=nnx.Rngs(0), output_stride=14, pretrained=path)
    graph, state = nnx.split(module)
    run = jax.jit(lambda state, x: nnx.merge(graph, state).tokens(x))
    for name in ("square", "wide"):
        images = jnp.asarray(stored[f"{name}/input"].transpose(0, 2, 3, 1))
        assert_close(run(state, images), stored[f"{name}/tokens"])


def narrow(family, depth=2):
    return vit.ViT(WIDTH, depth, 3, family, rngs=nnx.Rngs(0))


@cache
def registered():
    return filled(lambda: TokenClassifier(narrow(REGISTERS), 3, rngs=nnx.Rngs(0)))


def test_a_canvas_changes_nothing_and_registers_are_no_place():
    graph, state = nnx.split(registered().backbone)
    run = jax.jit(lambda state, *x: nnx.merge(graph, state)(x[0], inside=x[1]))
    image = np.random.default_rng(0).standard_normal((1, 11, 15, 3), np.float32)
    canvas, inside = np.full((1, 20, 24, 3), np.nan, np.float32), np.zeros((1, 20, 24), bool)
    canvas[:, :11, :15], inside[:, :11, :15] = image, True
    for tight, wide in zip(run(state, image, None), run(state, canvas, inside), strict=True):
        assert tight.shape == (1, 3, 4, WIDTH) and wide.shape == (1, 5, 6, WIDTH)
        assert_close(np.asarray(wide)[:, :3, :4], np.asarray(tight), 1e-5)
        assert not np.asarray(wide)[:, 3:].any()


def test_maps_are_the_normed_tokens_after_each_quarter_of_the_blocks():
    module = filled(lambda: narrow(REGISTERS, depth=4))
    images = jnp.asarray(np.random.default_rng(1).standard_normal((1, 8, 12, 3), np.float32))
    graph, state = nnx.split(module)

    @jax.jit
    def run(state, images):
        bound = nnx.merge(graph, state)
        last, records = bound.record(images)
        norm = bound.encoder.norm.weights()
        inner = [seen.tokens for seen in records]
        return bound(images), [inner[0], *(tokens.layer_norm(x, norm) for x in inner[1:]), last]

    maps, slow = run(state, images)
    for x, wanted in zip(maps, slow, strict=True):
        assert wanted.shape == (1, 1 + 6 + 2, WIDTH)
        assert_close(np.asarray(x).reshape(1, 6, WIDTH), np.asarray(wanted)[:, 1:7], 1e-5)


def test_explanations_have_a_value_for_every_patch_and_none_for_registers():
    graph, state = nnx.split(registered())

    @jax.jit
    def run(state, images, labels):
        attentive = nnx.merge(graph, state).attentive()
        methods = (
            attention.rollout,
            attention.attention_grad_cam,
            relevance.attribution,
            relevance.full_lrp,
        )
        return [method(attentive, images, labels) for method in methods]

    images = jnp.asarray(np.random.default_rng(2).random((1, 8, 12, 3), np.float32))
    found = run(state, images, jnp.ones((1, 3), bool))
    assert [x.shape for x in found] == [(1, 2, 3, 3)] * 3 + [(1, 8, 12, 3)]
    assert all(bool(jnp.isfinite(x).all()) for x in found)


def test_forms_are_those_of_their_names():
    x = jnp.asarray([[-2.0, 0.5, 3.0]])
    quick = tokens.Affine(None, None, Form(quick=True))
    exact = tokens.activate(x, tokens.Affine(None, None))
    np.testing.assert_allclose(exact, [[-0.0455003, 0.3457312, 2.9959502]], rtol=1e-5)
    wanted = np.asarray(x) / (1 + np.exp(-1.702 * np.asarray(x)))
    np.testing.assert_allclose(tokens.activate(x, quick), wanted, rtol=1e-5)
    coarse = tokens.Affine(jnp.ones(3), jnp.zeros(3), Form(epsilon=1.0))
    away = np.asarray(x) - np.asarray(x).mean()
    wanted = away / np.sqrt((away**2).mean() + 1)
    np.testing.assert_allclose(tokens.layer_norm(x, coarse), wanted, rtol=1e-5)


def keys(a, place):
    """Keys' kernel with a = -0.75 as it stands in his paper."""
    d = abs(place)
    if d <= 1:
        return (a + 2) * d**3 - (a + 3) * d**2 + 1
    return a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a if d < 2 else 0.0


def test_positions_are_resampled_as_pytorch_does_without_antialiasing():
    position = np.random.default_rng(0).standard_normal((5, 4, 2)).astype(np.float32)
    np.testing.assert_array_equal(
        vit_positions.torch_cubic(jnp.asarray(position), (5, 4))[0], position
    )
    slow = np.zeros((3, 6, 2))
    for i in range(3):
        for j in range(6):
            y, x = (i + 0.5) * 5 / 3 - 0.5, (j + 0.5) * 4 / 6 - 0.5
            for m in range(int(np.floor(y)) - 1, int(np.floor(y)) + 3):
                for n in range(int(np.floor(x)) - 1, int(np.floor(x)) + 3):
                    weight = keys(-0.75, y - m) * keys(-0.75, x - n)
                    slow[i, j] += weight * position[np.clip(m, 0, 4), np.clip(n, 0, 3)]
    np.testing.assert_allclose(
        vit_positions.torch_cubic(jnp.asarray(position), (3, 6))[0], slow, atol=1e-5
    )
    cells = jnp.zeros((1, 4, 7), bool).at[:, :3, :6].set(True)
    canvas = np.asarray(vit_positions.torch_cubic(jnp.asarray(position), (4, 7), cells)[0])
    np.testing.assert_allclose(canvas[:3, :6], slow, atol=1e-5)
    assert not canvas[3:].any() and not canvas[:, 6:].any()


def timm_names(module, *, scale):
    """Arrays in timm's names and layout with a LayerScale of ``scale``, and what they mean."""
    draw = np.random.default_rng(3)
    encoder = module.encoder
    token, place = np.asarray(encoder.token[...]), np.asarray(encoder.token_position[...])
    position = np.asarray(encoder.position[...]).reshape(-1, WIDTH)
    out = {
        "cls_token": token[None, None],
        "pos_embed": np.concatenate([place[None], position])[None],
        "patch_embed.proj.weight": np.asarray(module.embed.kernel[...])
        .reshape(4, 4, 3, WIDTH)
        .transpose(3, 2, 0, 1),
        "norm.weight": np.asarray(encoder.norm.scale[...]),
        "norm.bias": np.asarray(encoder.norm.bias[...]),
        "mask_token": np.zeros((1, WIDTH), np.float32),
    }
    names = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
    for n, block in enumerate(encoder.blocks):
        for name, layer in zip(names, block.weights()[:-1], strict=True):
            gamma = np.ones(1, np.float32)
            if scale and name in ("attn.proj", "mlp.fc2"):
                gamma = np.exp(0.1 * draw.standard_normal(WIDTH)).astype(np.float32)
                out[f"blocks.{n}.ls{1 if name == 'attn.proj' else 2}.gamma"] = gamma
            kernel = np.asarray(layer.kernel)
            out[f"blocks.{n}.{name}.weight"] = (kernel / gamma).T
            out[f"blocks.{n}.{name}.bias"] = np.asarray(layer.bias) / gamma
    return out


def assert_filled(module, family, arrays):
    empty = nnx.eval_shape(partial(narrow, family))
    weights.fill(empty, arrays)
    for path, variable in import_names.values_of(empty).items():
        wanted = import_names.values_of(module)[path][...]
        np.testing.assert_allclose(variable[...], wanted, rtol=1e-5, atol=1e-7, err_msg=path)


@pytest.mark.parametrize("registers", ["reg_token", "register_tokens"])
def test_layer_scale_is_folded_into_the_layer_before_it_and_registers_are_read(registers):
    module = registered().backbone
    arrays = timm_names(module, scale=True)
    arrays["patch_embed.proj.bias"] = np.asarray(module.embed.bias[...])
    arrays[registers] = np.asarray(module.encoder.further[...])[None]
    assert_filled(module, REGISTERS, arrays)


def test_a_distillation_token_comes_with_its_position():
    family = vit.Family(patch=4, grid=3, further=1)
    module = filled(partial(narrow, family))
    arrays = timm_names(module, scale=False)
    arrays["patch_embed.proj.bias"] = np.asarray(module.embed.bias[...])
    further = np.asarray(module.encoder.further[...])
    place = np.random.default_rng(4).standard_normal((1, 1, WIDTH)).astype(np.float32)
    positions = arrays["pos_embed"]
    arrays["pos_embed"] = np.concatenate([positions[:, :1], place, positions[:, 1:]], axis=1)
    arrays["dist_token"] = further[None] - place
    arrays["head_dist.weight"] = np.zeros((5, WIDTH), np.float32)
    assert_filled(module, family, arrays)


OPENAI = {
    "norm1": "ln_1", "attn.qkv.": "attn.in_proj_", "attn.proj": "attn.out_proj", "norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj", "blocks.": "visual.transformer.resblocks.",
    "patch_embed.proj": "visual.conv1", "cls_token": "visual.class_embedding",
    "pos_embed": "visual.positional_embedding", "norm.": "visual.ln_post.",
    "norm_pre": "visual.ln_pre",
}  # fmt: skip


@pytest.mark.parametrize("openai", [False, True], ids=["timm", "openai"])
def test_clip_has_a_first_norm_and_no_bias_of_patches(openai):
    module = filled(partial(narrow, CLIP))
    module.embed.bias.set_value(jnp.zeros(WIDTH))
    arrays = timm_names(module, scale=False)
    del arrays["mask_token"]
    arrays["norm_pre.weight"] = np.asarray(module.encoder.first_norm.scale[...])
    arrays["norm_pre.bias"] = np.asarray(module.encoder.first_norm.bias[...])
    if openai:
        renamed = {}
        for name, value in arrays.items():
            for theirs, ours in OPENAI.items():
                if theirs != "norm." or name.startswith("norm."):
                    name = name.replace(theirs, ours)
            renamed[name] = value[0] if "embedding" in name else value
        arrays = renamed | {"visual.proj": np.zeros((WIDTH, 5), np.float32),
                            "logit_scale": np.zeros((), np.float32),
                            "ln_final.bias": np.zeros(3, np.float32)}  # fmt: skip
    assert_filled(module, CLIP, arrays)


def test_a_stride_other_than_the_patch_is_refused_and_none_takes_it():
    assert build.stride("dinov2_vits14") == 14 and build.stride("clip_vit_b32") == 32
    with pytest.raises(ValueError, match="output_stride is 16, wanted 14"):
        narrow_14 = vit.Family(patch=14, grid=2)
        vit.ViT(WIDTH, 1, 3, narrow_14, rngs=nnx.Rngs(0), output_stride=16)
