"""Make ``golden/explanations.npz``: what the reference implementations of explanations give.

    python tests/make_golden_maps.py

Needs what ``make_goldens.py`` needs, grad-cam (pytorch_grad_cam), and txv, whose ``lrp_modules``
are the layers of Chefer, Gur & Wolf's code. How relevance runs through a block is written here as
in their ``ViT_LRP.py``, because txv's own block leaves out one way of every sum. Transformers run
in double precision, one image at a time, since that code sums over a batch.
"""

from functools import partial
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import torch
from golden_draw import EXPLAINED, cam_arrays, normal
from make_goldens import filled, save
from pytorch_grad_cam import (
    AblationCAM,
    FullGrad,
    GradCAM,
    GradCAMPlusPlus,
    HiResCAM,
    LayerCAM,
    XGradCAM,
)
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from timm.models.resnet import BasicBlock, ResNet
from timm.models.vision_transformer import VisionTransformer
from txv import lrp_modules
from txv.lrp_models import LRPVisionTransformer


class Head(torch.nn.Module):
    """A layer to explain, and a linear classifier on its mean."""

    def __init__(self, channels):
        super().__init__()
        self.layer = torch.nn.Identity()
        self.fc = torch.nn.Linear(channels, 6)

    def forward(self, x):
        return self.fc(self.layer(x).mean((2, 3)))


def targets():
    return [ClassifierOutputTarget(number) for number in EXPLAINED]


def weighed(kind):
    """Raw sums and final maps of the methods that weigh given activations by given gradients."""
    activations, gradients = cam_arrays(kind)
    found = {}
    for method in (GradCAM, GradCAMPlusPlus, LayerCAM, XGradCAM, HiResCAM):
        model = Head(8)
        cam = method(model, [model.layer])
        cam.activations_and_grads.release()
        cam.activations_and_grads = SimpleNamespace(
            activations=[torch.from_numpy(activations)],
            gradients=[torch.from_numpy(gradients)],
            release=lambda: None,
        )
        name = f"{kind}/{method.__name__}"
        found[f"{name}/raw"] = cam.get_cam_image(None, None, None, activations, gradients, False)
        layers = cam.compute_cam_per_layer(torch.zeros(2, 3, 12, 18), None, False)
        found[f"{name}/final"] = cam.aggregate_multi_layers(layers)
    return found


def linear():
    """Raw maps of the methods that run the classifier, on drawn activations, for the best class."""
    activations = torch.from_numpy(cam_arrays("relu")[0]).requires_grad_()
    model = Head(8)
    filled(model)
    found = {"linear/logits": model(activations).detach().numpy()}
    for method in (GradCAM, AblationCAM):
        cam, kept = method(model, [model.layer]), {}
        whole = cam.get_cam_image

        def keep(*args, whole=whole, kept=kept):
            kept["raw"] = whole(*args)
            return kept["raw"]

        with patch.object(cam, "get_cam_image", keep):
            cam(activations, None)
        found[f"linear/{method.__name__}"] = kept["raw"]
    return found


def full_grad():
    """FullGrad of a residual network of eight layers, and a gradient map inside it."""
    model = ResNet(BasicBlock, (1, 1, 1, 1), num_classes=6)
    filled(model)
    images = torch.from_numpy(normal("images", (2, 3, 48, 64))).requires_grad_()
    final = FullGrad(model, [])(images, targets())
    inner = GradCAM(model, [model.layer3])
    whole, kept = inner.get_cam_image, {}
    with patch.object(inner, "get_cam_image", lambda *a: kept.setdefault("raw", whole(*a))):
        inner(images, targets())
    images = images.detach().requires_grad_()
    logits = model(images)
    (slope,) = torch.autograd.grad(logits[0, EXPLAINED[0]], images)
    return {
        "resnet/logits": logits.detach().numpy(),
        "resnet/FullGrad": final.astype(np.float32),
        "resnet/layer3/GradCAM": kept["raw"],
        "resnet/input_part": (slope * images)[0].sum().detach().numpy(),
    }


def transformer():
    """The small transformer twice: timm's, and txv's with the same weights."""
    shape = {"img_size": 48, "embed_dim": 24, "depth": 3, "num_heads": 3, "num_classes": 6}
    norm = partial(lrp_modules.LayerNorm, eps=1e-6)
    plain = VisionTransformer(**shape)
    traced = LRPVisionTransformer(
        **shape, qkv_bias=True, save_att=True, save_rel=True, norm_layer=norm
    )
    parameters = filled(plain)
    filled(traced)
    return parameters, plain.double(), traced.double()


def through_block(block, relevance):
    """A block as in the authors' ``ViT_LRP.py``: both ways of each sum, joined where they part."""
    stays, goes = block.add2.relprop(relevance, 1)
    stays = block.clone2.relprop((stays, block.mlp.relprop(goes, 1)), 1)
    stays, goes = block.add1.relprop(stays, 1)
    return block.clone1.relprop((stays, block.attn.relprop(goes, 1)), 1)


def relevances(model, logits, chosen):
    """Relevance of every block's attention (l,n,t,t), and of the pixels (H,W)."""
    one_hot = torch.nn.functional.one_hot(torch.tensor([chosen]), logits.shape[-1]).double()
    relevance = model.pool1.relprop(model.head.relprop(one_hot, 1).unsqueeze(1), 1)
    for block in reversed(model.blocks):
        relevance = through_block(block, relevance)
    relevance, _ = model.add.relprop(relevance, 1)
    _, relevance = model.cat.relprop(relevance, 1)
    grid = relevance.transpose(1, 2).reshape(1, -1, 3, 3)
    pixels = model.patch_embed.proj.relprop(grid, 1).sum(1)[0]
    return torch.stack([block.attn.get_attn_cam()[0] for block in model.blocks]), pixels


def separate(self, relevance, alpha):
    """Linear layers of the LRP they compare with: each sign over its own sum."""
    total = 0
    for bound in ({"min": 0}, {"max": 0}):
        x, weight = self.X.clamp(**bound), self.weight.clamp(**bound)
        sums = torch.nn.functional.linear(x, weight)
        share = lrp_modules.safe_divide(relevance, sums)
        total = total + x * (share @ weight)
    return total


def rolled(matrices, start):
    """Class token's row of the product of matrices (l,t,t), without its own column."""
    product = np.eye(matrices.shape[-1])
    for matrix in matrices[start:]:
        product = matrix @ product
    return product[0, 1:]


def attention_maps(found, attn, slope):
    """Maps of attention: rollout, the last block's, and its Grad-CAM."""
    eye = np.eye(attn.shape[-1])
    mixed = attn.mean(1) + eye
    mixed = mixed / mixed.sum(-1, keepdims=True)
    found |= {f"rollout_start{n}": rolled(mixed, n) for n in (0, 1)}
    found["raw_attention_last"] = attn[-1].mean(0)[0, 1:]
    weights = slope[-1, :, 0, 1:].mean(-1, keepdims=True)
    found["attn_gradcam"] = (attn[-1, :, 0, 1:] * weights).mean(0)


def explained(plain, model, image, chosen):
    """Everything about one image and class."""
    logits = model(image)
    np.testing.assert_allclose(logits.detach(), plain(image).detach(), rtol=1e-9)
    logits[0, chosen].backward()
    attn = np.stack([b.attn.get_attn().detach().numpy()[0] for b in model.blocks])
    slope = np.stack([b.attn.get_attgradients().detach().numpy()[0] for b in model.blocks])
    relevance, pixels = (x.detach().numpy() for x in relevances(model, logits, chosen))
    eye = np.eye(attn.shape[-1])
    cams = (slope * relevance).clip(0).mean(1) + eye
    found = {"logits": logits.detach().numpy()[0], "attn": attn, "attn_grad": slope,
             "attn_cam": relevance, "full_lrp_ours": pixels,
             "lrp_rollout_ours": rolled(relevance.clip(0).mean(1) + eye, 1)}  # fmt: skip
    found |= {f"attribution_start{n}": rolled(cams, n) for n in (0, 1)}
    attention_maps(found, attn, slope)
    with (
        patch.object(lrp_modules.Linear, "relprop", separate),
        patch.object(lrp_modules.Add, "relprop", lrp_modules.RelPropSimple.relprop),
    ):
        relevance, pixels = (x.detach().numpy() for x in relevances(model, logits, chosen))
    found["full_lrp_orig"] = pixels
    found["partial_lrp_orig"] = relevance[-1].clip(0).mean(0)[0, 1:]
    norm = plain.blocks[-1].norm1
    places = lambda x: x[:, 1:].transpose(1, 2).reshape(1, -1, 3, 3)  # noqa: E731
    kept = {}
    cam = GradCAM(plain, [norm], reshape_transform=places)
    whole = cam.get_cam_image
    with patch.object(cam, "get_cam_image", lambda *a: kept.setdefault("raw", whole(*a))):
        cam(image, [ClassifierOutputTarget(chosen)])
    return found | {"grad_cam": kept["raw"][0]}


def transformers():
    parameters, plain, model = transformer()
    images = torch.from_numpy(normal("images", (2, 3, 48, 48))).double()
    rows = [
        explained(plain, model, image[None], chosen)
        for image, chosen in zip(images, EXPLAINED, strict=True)
    ]
    names = np.array([f"{name} {' '.join(map(str, shape))}" for name, shape in parameters])
    return {"vit/parameters": names} | {
        f"vit/{name}": np.stack([row[name] for row in rows]).astype(np.float32) for name in rows[0]
    }


def main():
    made = weighed("relu") | weighed("signed") | linear() | full_grad() | transformers()
    save("explanations.npz", ("torch", "timm", "grad-cam", "txv"), made)


if __name__ == "__main__":
    main()
