"""Backbones: networks that return maps at several strides.

To add one: write its module and table of weight names in ``backbones/<name>.py``, and one line in
``BACKBONES``; the family test then covers it.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from wsss_jax.backbones import inverted, resnest, resnet, resnet_v2, vit
from wsss_jax.backbones.mobilenet import MobileNetV1, MobileNetV2
from wsss_jax.backbones.resnet38d import ResNet38d
from wsss_jax.backbones.tiny import Tiny
from wsss_jax.backbones.vit_hybrid import HybridViT
from wsss_jax.types import Backbone

BACKBONES: Mapping[str, Callable[..., Backbone]] = MappingProxyType(
    {
        "efficientnet_lite0": inverted.efficientnet_lite0,
        "efficientnet_lite1": inverted.efficientnet_lite1,
        "efficientnet_lite2": inverted.efficientnet_lite2,
        "mobilenet_v1": MobileNetV1,
        "mobilenet_v2": MobileNetV2,
        "mobilenetv2_100": inverted.mobilenetv2,
        "resnest14": resnest.resnest14,
        "resnest26": resnest.resnest26,
        "resnest50": resnest.resnest50,
        "resnest101": resnest.resnest101,
        "resnest200": resnest.resnest200,
        "resnest269": resnest.resnest269,
        **resnest.FAST,
        "resnet18": resnet.resnet18,
        "resnet34": resnet.resnet34,
        "resnet38d": ResNet38d,
        "resnet50": resnet.resnet50,
        "resnet50d": resnet.resnet50d,
        "resnet50_irn": resnet.irn,
        "resnet50v2": resnet_v2.resnet50v2,
        "resnet101": resnet.resnet101,
        "resnet152": resnet.resnet152,
        "resnext50": resnet.resnext50,
        "tiny": Tiny,
        "wide_resnet50_2": resnet.wide_resnet50_2,
        **vit.NETWORKS,
        "vit_base_r50": HybridViT,
    }
)
"""Name to class; called as ``BACKBONES[name](rngs=nnx.Rngs(0), output_stride=16)``."""
