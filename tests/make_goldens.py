"""Make ``golden/networks.npz``, ``crf.npz`` and ``priors.npz``: what the references give.

    python tests/make_goldens.py --psa resnet38d.py

Needs torch, timm and torchvision, pydensecrf2, Pillow, and for ResNet38-d the file
``network/resnet38d.py`` of its authors (github.com/jiwoon-ahn/psa). ``make_golden_maps.py`` makes
the explanations. Weights and images are drawn from names (``golden_draw``), so only fingerprints
of maps are stored, and the names and shapes of the weights. Versions used are stored beside them.
"""

import argparse
import importlib.util
import io
import json
from functools import partial
from importlib.metadata import version

import numpy as np
import pydensecrf.densecrf
import pydensecrf.utils
import timm
import torch
from golden_draw import FOLDER, PRIORS, crf_scene, drawn, fingerprint, normal, prior_scores
from PIL import Image
from timm.layers import QuickGELU
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva
from timm.models.resnest import ResNestBottleneck
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from timm.models.vision_transformer import VisionTransformer

ODD = (45, 70)
RESNET = ("maxpool", "layer1", "layer2", "layer3", "layer4")
INVERTED = ("blocks.0", "blocks.1", "blocks.2", "blocks.4", "bn2")
DEEP = {"stem_type": "deep", "avg_down": True}
NARROW = {"embed_dim": 48, "depth": 4, "num_heads": 3, "dynamic_img_size": True}
EXACT = partial(torch.nn.LayerNorm, eps=1e-5)


def resnest(stem):
    return ResNet(
        ResNestBottleneck, (1, 1, 1, 1), stem_width=stem, base_width=64, cardinality=1, **DEEP,
        block_args={"radix": 2, "avd": True, "avd_first": False},
    )  # fmt: skip


def dinov3():
    return Eva(
        img_size=64, patch_size=16, embed_dim=48, depth=4, num_heads=3, num_classes=0,
        qkv_bias=True, init_values=1e-5, rope_type="dinov3", rope_temperature=100,
        rope_rotate_half=True, use_rot_pos_emb=True, use_abs_pos_emb=False, num_reg_tokens=4,
        use_fc_norm=False, norm_layer=EXACT, dynamic_img_size=True, global_pool="token",
    )  # fmt: skip


def clip():
    return VisionTransformer(
        patch_size=32, img_size=96, num_classes=0, pre_norm=True, norm_layer=EXACT,
        act_layer=QuickGELU, **NARROW,
    )  # fmt: skip


CONVOLUTIONAL = {
    "resnet50": (lambda: timm.create_model("resnet50"), RESNET),
    "resnet34": (lambda: ResNet(BasicBlock, (1, 1, 1, 1)), RESNET),
    "resnet50d": (lambda: ResNet(Bottleneck, (1, 1, 1, 1), stem_width=32, **DEEP), RESNET),
    "wide_resnet50_2": (lambda: ResNet(Bottleneck, (1, 1, 1, 1), base_width=128), RESNET),
    "resnext50": (
        lambda: ResNet(Bottleneck, (1, 1, 1, 1), base_width=4, cardinality=32), RESNET
    ),
    "resnest14": (lambda: timm.create_model("resnest14d"), RESNET),
    "resnest101": (lambda: resnest(64), RESNET),
    "efficientnet_lite0": (lambda: timm.create_model("tf_efficientnet_lite0"), INVERTED),
    "mobilenetv2_100": (lambda: timm.create_model("mobilenetv2_100"), INVERTED),
}  # fmt: skip
"""Name to maker and taps. Smaller than their names: one block per stage, where made by parts."""

TRANSFORMERS = {
    "vit_small": (
        lambda: timm.create_model("vit_small_patch16_224", img_size=48, num_classes=0), (48, 48)
    ),
    "vit_base_r50": (
        lambda: timm.create_model("vit_base_r50_s16_224", img_size=48, num_classes=0), (48, 48)
    ),
    "dinov2_vits14_reg": (
        lambda: timm.create_model(
            "vit_small_patch14_reg4_dinov2", img_size=42, dynamic_img_size=True, num_classes=0
        ),
        (42, 70),
    ),
    "dinov3": (dinov3, (64, 96)),
    "clip_quick": (clip, (96, 128)),
    "deit_distilled": (
        lambda: VisionTransformerDistilled(img_size=64, num_classes=7, **NARROW), (64, 96)
    ),
}  # fmt: skip
"""Name to maker and size of images."""


def filled(model):
    """Weights drawn from their names, in place; returns their names and shapes."""
    parameters = [
        [name, list(value.shape)]
        for name, value in model.state_dict().items()
        if not name.endswith("num_batches_tracked")
    ]
    state = {name: torch.from_numpy(drawn(name, shape)) for name, shape in parameters}
    model.load_state_dict(state, strict=False)
    model.eval()
    return parameters


def tapped(model, taps, images):
    """What the named parts of the network give, (b,h,w,k)."""
    found = {}
    for tap in taps:
        part = model.get_submodule(tap)
        part.register_forward_hook(lambda _, given, out, tap=tap: found.update({tap: out.clone()}))
    run = getattr(model, "forward_features", model)
    run(images)
    return [found[tap].numpy().transpose(0, 2, 3, 1) for tap in taps]


def stored(parameters, size, maps):
    """One network as ``networks.npz`` holds it."""
    about = {"parameters": parameters, "size": size}
    return {
        "about": np.frombuffer(json.dumps(about).encode(), np.uint8),
        "maps": np.stack([fingerprint(x) for x in maps]).astype(np.float32),
    }


def images(size):
    return torch.from_numpy(normal("images", (2, 3, *size)))


def convolutional(name):
    make, taps = CONVOLUTIONAL[name]
    model = make()
    return stored(filled(model), ODD, tapped(model, taps, images(ODD)))


def transformer(name):
    """Tokens that are places: class token, registers and the like come first."""
    make, size = TRANSFORMERS[name]
    model = make()
    parameters = filled(model)
    tokens = model.forward_features(images(size)).numpy()
    patch = {"dinov2_vits14_reg": 14, "clip_quick": 32}.get(name, 16)
    return stored(parameters, size, [tokens[:, -(size[0] // patch) * (size[1] // patch) :]])


def resnet38d(path):
    """The authors' network from their own file: its taps after BatchNorm and ReLU."""
    spec = importlib.util.spec_from_file_location("psa", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.Net()
    parameters = filled(model)
    found = model.forward_as_dict(images(ODD))
    maps = [found[tap].numpy().transpose(0, 2, 3, 1) for tap in ("conv4", "conv5", "conv6")]
    return stored(parameters, ODD, maps)


def mobilenet(name, taps):
    """A MobileNet with TensorFlow's windows, whose BatchNorms only add the bias of a folded one."""
    model = timm.create_model(name, pad_type="same", num_classes=0).eval()
    parameters, number = [], 0
    pending = None
    for part in model.modules():
        if isinstance(part, torch.nn.Conv2d):
            pending = f"{number:02d}_{'dw' if part.groups > 1 else 'conv'}"
            parameters.append([f"{pending}/kernel", list(part.weight.shape)])
            part.weight.data = torch.from_numpy(drawn(*parameters[-1]))
            number += 1
        elif isinstance(part, torch.nn.BatchNorm2d):
            parameters.append([f"{pending}/bias", list(part.bias.shape)])
            part.running_var.fill_(1 - part.eps)
            part.bias.data = torch.from_numpy(drawn(*parameters[-1]))
    return stored(parameters, (64, 96), tapped(model, taps, images((64, 96))))


def networks(psa):
    yield from ((name, convolutional(name)) for name in CONVOLUTIONAL)
    yield from ((name, transformer(name)) for name in TRANSFORMERS)
    yield "resnet38d", resnet38d(psa)
    yield "mobilenet_v1", mobilenet("mobilenetv1_100", [f"blocks.{n}" for n in range(5)])
    yield "mobilenet_v2", mobilenet("mobilenetv2_100", INVERTED)


PRESETS = {"psa": (3, 80, 13), "deeplab": (1, 67, 3), "irn": (3, 50, 5)}
COMPAT = {"deeplab": 4}


def crf():
    """Marginals (H,W,3) of pydensecrf after t iterations, for the settings of three systems."""
    image, probability = crf_scene()
    k, found = probability.shape[-1], {}
    planes = np.ascontiguousarray(probability.transpose(2, 0, 1))
    for name, t in (("psa", 0), ("psa", 1), ("psa", 10), ("deeplab", 10), ("irn", 1), ("irn", 10)):
        made = pydensecrf.densecrf.DenseCRF2D(image.shape[1], image.shape[0], k)
        if name == "irn":
            unary = pydensecrf.utils.unary_from_labels(
                planes.argmax(0), k, gt_prob=0.7, zero_unsure=False
            )
        else:
            unary = pydensecrf.utils.unary_from_softmax(planes)
        narrow, wide, colour = PRESETS[name]
        made.setUnaryEnergy(np.ascontiguousarray(unary))
        made.addPairwiseGaussian(sxy=narrow, compat=3)
        made.addPairwiseBilateral(
            sxy=wide, srgb=colour, rgbim=np.ascontiguousarray(image), compat=COMPAT.get(name, 10)
        )
        marginals = np.array(made.inference(t)).reshape(planes.shape)
        found[f"{name}_{t}"] = marginals.transpose(1, 2, 0).astype(np.float32)
    return found


def prior_files(id):
    """One image's file in each layout, as the tools save it."""
    classes, _ = PRIORS[id]
    scores = prior_scores(id)
    numbers = np.array(classes)
    coarse = torch.from_numpy(scores[:, ::4, ::4].copy())
    low, high = scores.min((1, 2), keepdims=True), scores.max((1, 2), keepdims=True)
    one_each = lambda maps: dict(zip(classes, maps, strict=True))  # noqa: E731
    behind = {0: (1 - scores.max(0)) ** 4} | {k + 1: m for k, m in one_each(scores).items()}
    shifted = np.pad(numbers + 1, (1, 0))
    return {
        "psa_cam": one_each(scores),
        "psa_crf": behind,
        "irn": {"keys": torch.from_numpy(numbers), "cam": coarse, "high_res": scores},
        "puzzle": {"keys": shifted, "cam": coarse, "hr_cam": scores},
        "puzzle_rw": {"keys": shifted, "rw": scores / scores.max()},
        "mctformer": one_each((scores - low) / (high - low + np.float32(1e-8))),
        "clipes": {"keys": numbers, "attn_highres": scores.astype(np.float16)},
    }


def priors():
    """The bytes of every file, under its layout and name."""
    found = {}
    for id, (classes, _) in PRIORS.items():
        for layout, content in prior_files(id).items():
            file = io.BytesIO()
            np.save(file, content)
            found[f"{layout}/{id}.npy"] = np.frombuffer(file.getvalue(), np.uint8)
        scores = prior_scores(id)
        rows = np.concatenate([np.full_like(scores[:1], 0.35), scores]).argmax(0)
        mask = Image.fromarray(np.array([0, *(k + 1 for k in classes)], np.uint8)[rows])
        for layout in ("mask_png", "mask_palette_png"):
            if "palette" in layout:
                mask.putpalette([n for value in range(256) for n in (value, 255 - value, 7)])
            file = io.BytesIO()
            mask.save(file, "png")
            found[f"{layout}/{id}.png"] = np.frombuffer(file.getvalue(), np.uint8)
    return found


def save(file, packages, arrays):
    """One file of ``golden/``, with the versions of what made it."""
    versions = " ".join(f"{name}={version(name)}" for name in packages)
    np.savez_compressed(FOLDER / file, made_by=np.array(versions), **arrays)
    print(file, (FOLDER / file).stat().st_size, versions)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--psa", required=True, help="network/resnet38d.py of jiwoon-ahn/psa")
    psa = parser.parse_args().psa
    with torch.no_grad():
        made = {f"{name}/{key}": value for name, found in networks(psa)
                for key, value in found.items()}  # fmt: skip
    save("networks.npz", ("torch", "timm"), made)
    save("crf.npz", ("pydensecrf2",), crf())
    save("priors.npz", ("numpy", "torch", "pillow"), priors())


if __name__ == "__main__":
    main()
