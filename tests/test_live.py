"""Networks against timm and torchvision, run here on weights drawn at random.

Skipped where torch, timm or torchvision are missing (pip install torch==2.13.0; pip install
timm==1.0.31 torchvision==0.28.0 --no-deps). Small versions of the networks: depths and widths are
data. Those whose names depend on every block are whole, at the size of a photograph.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from golden_draw import drawn
from golden_weights import assert_close

from wsss_jax.backbones import inverted, resnest, resnet, resnet_v2, vit
from wsss_jax.weights import loading as weights

torch = pytest.importorskip("torch", reason="needs torch: the reference runs beside us")
timm = pytest.importorskip("timm", reason="needs timm: it is the reference")
torchvision = pytest.importorskip("torchvision", reason="needs torchvision: it is a reference")

ODD, WIDE = (75, 107), (64, 96)


class Pair(NamedTuple):
    """Our maker, theirs, what their forward is called, and the size of images."""

    ours: Any
    theirs: Any
    forward: str = "forward_features"
    size: tuple[int, int] = ODD
    names: Any = staticmethod(lambda state: state)


def resnet_of(block: str, **options: Any) -> Any:
    """A ResNet of timm with one block per stage."""
    from timm.models.resnet import BasicBlock, Bottleneck, ResNet

    kind = {"basic": BasicBlock, "bottleneck": Bottleneck}[block]
    return ResNet(kind, (1, 1, 1, 1), **options)


def resnest_of(radix: int, groups: int, base: int) -> Any:
    """A fast ResNeSt of timm with one block per stage."""
    from timm.models.resnest import ResNestBottleneck
    from timm.models.resnet import ResNet

    return ResNet(
        ResNestBottleneck, (1, 1, 1, 1), stem_type="deep", stem_width=32, avg_down=True,
        base_width=base, cardinality=groups,
        block_args={"radix": radix, "avd": True, "avd_first": True},
    )  # fmt: skip


def vit_of(**options: Any) -> Any:
    """A transformer of timm with four narrow blocks."""
    from timm.models.vision_transformer import VisionTransformer

    made = {"embed_dim": 48, "depth": 4, "num_heads": 3, "num_classes": 0} | options
    return VisionTransformer(dynamic_img_size=True, **made)


def distilled() -> Any:
    """A DeiT of timm with two tokens."""
    from timm.models.deit import VisionTransformerDistilled

    return VisionTransformerDistilled(
        img_size=64, embed_dim=48, depth=4, num_heads=3, num_classes=7, dynamic_img_size=True
    )


def v2() -> Any:
    """The first three stages of a pre-activation ResNet of timm, one unit each."""
    from timm.layers import BatchNormAct2d, create_conv2d
    from timm.models.resnetv2 import ResNetV2

    return ResNetV2((1, 1, 1, 1), conv_layer=create_conv2d, norm_layer=BatchNormAct2d, stem_type="")


def small_vit(family: vit.Family) -> Any:
    return partial(vit.ViT, 48, 4, 3, family)


def clip(quick: bool) -> Any:
    from timm.layers import QuickGELU

    return vit_of(
        patch_size=32, img_size=96, pre_norm=True, act_layer=QuickGELU if quick else None,
        norm_layer=partial(torch.nn.LayerNorm, eps=1e-5),
    )  # fmt: skip


def eva(qkv_bias: bool) -> Any:
    """timm's DINOv3 with four narrow blocks."""
    from timm.models.eva import Eva

    return Eva(
        img_size=64, patch_size=16, embed_dim=48, depth=4, num_heads=3, num_classes=0,
        qkv_bias=qkv_bias, init_values=1e-5, rope_type="dinov3", rope_temperature=100,
        rope_rotate_half=True, use_rot_pos_emb=True, use_abs_pos_emb=False, num_reg_tokens=4,
        use_fc_norm=False, norm_layer=partial(torch.nn.LayerNorm, eps=1e-5),
        dynamic_img_size=True, global_pool="token",
    )  # fmt: skip


def torch_vit() -> Any:
    return torchvision.models.VisionTransformer(
        image_size=64, patch_size=16, num_layers=4, num_heads=3, hidden_dim=48, mlp_dim=192
    )


BOTTLENECK = partial(resnet.ResNet, resnet.Bottleneck, (1, 1, 1, 1), output_stride=32)
MOBILE = partial(inverted.mobilenetv2, output_stride=32)
PAIRS = {
    "efficientnet_lite0": Pair(
        partial(inverted.efficientnet_lite0, output_stride=32),
        lambda: timm.create_model("tf_efficientnet_lite0"),
        size=(333, 500),
    ),
    "mobilenetv2_100": Pair(MOBILE, lambda: timm.create_model("mobilenetv2_100")),
    "mobilenet_v2 of torchvision": Pair(
        MOBILE, lambda: torchvision.models.mobilenet_v2(), forward="features"
    ),
    "resnet34": Pair(
        partial(resnet.ResNet, resnet.Basic, (1, 1, 1, 1), output_stride=32),
        partial(resnet_of, "basic"),
    ),
    "resnet50d": Pair(
        partial(BOTTLENECK, resnet.Variant(deep=True)),
        partial(resnet_of, "bottleneck", stem_width=32, stem_type="deep", avg_down=True),
    ),
    "wide_resnet50_2": Pair(
        partial(BOTTLENECK, resnet.Variant(widen=2)),
        partial(resnet_of, "bottleneck", base_width=128),
    ),
    "resnext50": Pair(
        partial(BOTTLENECK, resnet.Variant(widen=2, groups=32)),
        partial(resnet_of, "bottleneck", base_width=4, cardinality=32),
    ),
    **{
        f"resnest {radix} {groups} {base}": Pair(
            partial(
                resnest.ResNeSt,
                (1, 1, 1, 1),
                stem=32,
                output_stride=32,
                pool_first=True,
                splits=resnest.Splits(radix, groups, base),
            ),
            partial(resnest_of, radix, groups, base),
        )
        for radix, groups, base in ((2, 1, 64), (4, 2, 40), (1, 4, 24))
    },
    "patch 8": Pair(
        small_vit(vit.Family(patch=8, grid=6)),
        partial(vit_of, patch_size=8, img_size=48),
        size=WIDE,
    ),
    "dinov2 with registers": Pair(
        small_vit(vit.DINOV2_REGISTERS._replace(grid=5)),
        partial(
            vit_of, patch_size=14, img_size=70, reg_tokens=4, no_embed_class=True, init_values=1e-5
        ),
        size=(98, 140),
    ),
    "dinov3": Pair(small_vit(vit.DINOV3), partial(eva, qkv_bias=False), size=WIDE),
    "dinov3 with biases": Pair(small_vit(vit.DINOV3), partial(eva, qkv_bias=True), size=WIDE),
    "clip": Pair(
        small_vit(vit.CLIP._replace(patch=32, grid=3)), partial(clip, False), size=(96, 128)
    ),
    "clip_quick": Pair(
        small_vit(vit.CLIP_QUICK._replace(patch=32, grid=3)), partial(clip, True), size=(96, 128)
    ),
    "deit distilled": Pair(small_vit(vit.DEIT._replace(further=1, grid=4)), distilled, size=WIDE),
    "vit of torchvision": Pair(
        small_vit(vit.Family(grid=4)), torch_vit, forward="torchvision", size=(64, 64)
    ),
}


def fill_theirs(theirs: Any) -> dict[str, np.ndarray]:
    """Weights drawn from their names, which the network of theirs has from now on."""
    state = {
        name: drawn(name, tuple(x.shape))
        for name, x in theirs.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    theirs.load_state_dict({n: torch.from_numpy(x) for n, x in state.items()}, strict=False)
    return state


def filled_pair(pair: Pair) -> tuple[Any, Any]:
    """Both networks with the same weights, drawn from their names."""
    theirs = pair.theirs().eval()
    state = fill_theirs(theirs)
    ours = nnx.eval_shape(lambda: pair.ours(rngs=nnx.Rngs(0)))
    weights.fill(ours, state)
    return ours, theirs


def their_output(theirs: Any, pair: Pair, images: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        x = torch.from_numpy(images)
        if pair.forward == "torchvision":
            tokens = theirs._process_input(x)
            tokens = torch.cat([theirs.class_token.expand(len(x), -1, -1), tokens], dim=1)
            return theirs.encoder(tokens).numpy()
        return getattr(theirs, pair.forward)(x).numpy()


@pytest.mark.parametrize("name", PAIRS)
def test_outputs_are_those_of_the_reference(name):
    pair = PAIRS[name]
    ours, theirs = filled_pair(pair)
    images = np.random.default_rng(0).standard_normal((1, 3, *pair.size), np.float32)
    wanted = their_output(theirs, pair, images)
    graph, state = nnx.split(ours)
    maps = jax.jit(lambda state, x: nnx.merge(graph, state)(x))(
        state, jnp.asarray(images.transpose(0, 2, 3, 1))
    )
    found = np.asarray(maps[-1])
    if wanted.ndim == 3:  # tokens: those that are no place come first
        wanted = wanted[:, -found.shape[1] * found.shape[2] :].reshape(found.shape)
        assert_close(found, wanted)
    else:
        assert_close(found.transpose(0, 3, 1, 2), wanted)


def test_pre_activation_is_that_of_timm():
    theirs = v2().eval()
    state = fill_theirs(theirs)
    ours = nnx.eval_shape(lambda: resnet_v2.ResNetV2((1, 1, 1), rngs=nnx.Rngs(0)))
    one = {"weight": np.ones(3, np.float32), "running_var": np.full(3, 1 - 1e-5, np.float32)}
    arrays = {"conv0_weight": state["stem.conv.weight"]}
    for part in ("gamma", "beta", "running_mean", "running_var"):
        theirs_part = {"gamma": "weight", "beta": "bias"}.get(part, part)
        arrays[f"batchnorm0_{part}"] = one.get(theirs_part, np.zeros(3, np.float32))
        arrays[f"batchnorm1_{part}"] = drawn(f"bn1.{theirs_part}", (64,))
        for n in range(3):
            for k in range(3):
                name = f"stages.{n}.blocks.0.norm{k + 1}.{theirs_part}"
                arrays[f"stage{n + 1}_batchnorm{k}_{part}"] = state[name]
    for n in range(3):
        for k, layer in enumerate(("conv1", "conv2", "conv3", "downsample.conv")):
            arrays[f"stage{n + 1}_conv{k}_weight"] = state[f"stages.{n}.blocks.0.{layer}.weight"]
    weights.fill(ours, arrays)
    images = np.random.default_rng(0).standard_normal((1, 3, *ODD), np.float32)
    graph, held = nnx.split(ours)
    found = jax.jit(lambda held, x: nnx.merge(graph, held)(x))(
        held, jnp.asarray(images.transpose(0, 2, 3, 1))
    )
    with torch.no_grad():
        x = theirs.stem.conv(torch.from_numpy(images))
        parts = [torch.from_numpy(arrays[f"batchnorm1_{p}"]) for p in (
            "running_mean", "running_var", "gamma", "beta")]  # fmt: skip
        x = torch.nn.functional.batch_norm(x, *parts).relu()
        x = torch.nn.functional.max_pool2d(x, 3, 2, 1)
        for n in range(3):
            x = theirs.stages[n](x)
            assert_close(np.asarray(found[n + 1]).transpose(0, 3, 1, 2), x.numpy())
