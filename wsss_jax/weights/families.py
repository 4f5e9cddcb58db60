"""What a weight file is that fits no network here: known families by the names of their arrays.

Only what a refusal needs: the name of the family, and what can be taken in its place.
"""

import re
from collections.abc import Iterable
from typing import NamedTuple


class Family(NamedTuple):
    """A kind of network that is not here. mark: of a name that only its files have."""

    name: str
    mark: str
    instead: str


_TRANSFORMER = "vit_small or vit_base (hub:timm/vit_small_patch16_224.augreg_in21k)"
_CONVOLUTIONS = "resnet50 (hub:timm/resnet50.a1_in1k) or efficientnet_lite0"
_TIMM = "the same network under timm's names (hub:timm/NAME)"

FAMILIES: tuple[Family, ...] = (
    Family("ResNet of the library transformers", r"embedder\.embedder\.convolution\.", _TIMM),
    Family("CLIP of the library transformers", r"(vision_model|text_model)\..*self_attn\.q_proj",
           _TIMM),
    Family("SAM (Segment Anything)", r"(image|mask|prompt)_(encoder|decoder)\.", _TRANSFORMER),
    Family("BEiT or EVA", r"^blocks\.\d+\.(attn\.relative_position_bias_table$|gamma_1$)",
           _TRANSFORMER),
    Family("Swin", r"\.relative_position_bias_table$", _TRANSFORMER),
    Family("MaxViT", r"stages\.\d+\.blocks\.\d+\.attn_(block|grid)\.", _TRANSFORMER),
    Family("SegFormer (MiT)", r"(patch_embed1\.|block1\.0\.attn\.sr|patch_embeddings\.0\.)",
           _TRANSFORMER),
    Family("BERT or another text model", r"word_embeddings\.weight$", _TRANSFORMER),
    Family("ConvNeXt", r"(stages\.\d+\.blocks\.\d+\.conv_dw|\.dwconv)\.weight$|\.layer_scale$",
           _CONVOLUTIONS),
    Family("HRNet", r"stage2\.0\.branches\.", _CONVOLUTIONS),
    Family("RegNet", r"^(s1\.b1\.|trunk_output\.)", _CONVOLUTIONS),
    Family("DenseNet", r"denseblock1\.denselayer1\.", _CONVOLUTIONS),
    Family("EfficientNet or MobileNetV3 with squeeze and excitation",
           r"(\._se_reduce\.|\.se\.conv_reduce\.)",
           "efficientnet_lite0, efficientnet_lite1 or efficientnet_lite2"),
    Family("SE-ResNet", r"layer1\.0\.se(_module)?\.fc1\.", _CONVOLUTIONS),
    Family("Res2Net", r"layer1\.0\.convs\.0\.", _CONVOLUTIONS),
    Family("BiT (ResNet v2 of Google)", r"^(stages\.0\.blocks\.0\.downsample\.conv|body\.block1)",
           _CONVOLUTIONS),
    Family("Inception", r"Mixed_5b\.", _CONVOLUTIONS),
    Family("VGG", r"^features\.(28|34|40)\.weight$", _CONVOLUTIONS),
    Family("DETR or Mask2Former", r"transformer_decoder\.|class_embed\.|query_embed",
           _CONVOLUTIONS),
    Family("YOLO", r"^model\.\d+\.(cv1|conv)\.", _CONVOLUTIONS),
)  # fmt: skip
"""The first whose mark a name bears is meant."""


def family_of(names: Iterable[str]) -> Family | None:
    """The family whose mark one of the names bears; None for names of no known family."""
    found = list(names)
    for family in FAMILIES:
        mark = re.compile(family.mark)
        if any(mark.search(name) for name in found):
            return family
    return None
