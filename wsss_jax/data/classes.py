"""Class names, the two numberings and the only functions between them, and the mask palette.

Labels count foreground classes from 0; masks hold 0 = background, 1..C = class + 1, 255 = ignore.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from jaxtyping import Bool, Int, UInt8

from wsss_jax.config import lookup
from wsss_jax.errors import UserError
from wsss_jax.types import IGNORE

BACKGROUND = "background"

NO_CLASS = frozenset({BACKGROUND, "_background_", "__background__"})
"""What label files call pixels, and photographs, of no class, in small letters."""

IGNORED = frozenset({"void", "ignore", "__ignore__", "unlabelled", "unlabeled"})
"""What they call pixels without truth."""

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\xad\u200b\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]")
# Joiners (U+200C, U+200D) and marks of direction stay: scripts need them.


@dataclass(frozen=True)
class ClassList:
    """Foreground class names in label order; at most 254, as masks are bytes and 255 is ignored.

    >>> import wsss_jax as wj
    >>> names = wj.ClassList(("cat", "dog"))
    >>> names.index("dog"), names.multi_hot(["dog"]), names.mask_names()
    (1, array([False,  True]), ('background', 'cat', 'dog'))
    """

    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if isinstance(self.names, str):
            raise UserError(f"class names are {self.names!r}, wanted several: ({self.names!r},)")
        plain = tuple(unicodedata.normalize("NFC", name.strip()) for name in self.names)
        object.__setattr__(self, "names", plain)
        if len(set(self.names)) != len(self.names):
            raise UserError(f"class names repeat: {', '.join(self.names)}")
        for name in self.names:
            if not name.strip() or _CONTROL.search(name):
                raise UserError(
                    f"class name {name!r} is empty or holds control characters, or invisible ones"
                )
        if not 0 < len(self.names) < IGNORE:
            raise UserError(f"{len(self.names)} classes, wanted 1 to {IGNORE - 1}")

    def __len__(self) -> int:
        return len(self.names)

    def index(self, name: str) -> int:
        """Label index of a class name, or of one that differs in capitals; else ValueError."""
        name = unicodedata.normalize("NFC", name.strip())
        if name not in self.names:
            near = [other for other in self.names if other.casefold() == name.casefold()]
            name = near[0] if len(near) == 1 else name
        return lookup(MappingProxyType({n: i for i, n in enumerate(self.names)}), name, "class")

    def multi_hot(self, names: Iterable[str]) -> Bool[np.ndarray, " c"]:
        """Image-level labels as a vector; ValueError for an unknown name."""
        labels = np.zeros(len(self.names), bool)
        for name in names:
            labels[self.index(name)] = True
        return labels

    def mask_names(self) -> tuple[str, ...]:
        """Names in mask numbering, background first."""
        return (BACKGROUND, *self.names)


def to_mask_index(labels: Int[np.ndarray, "..."]) -> Int[np.ndarray, "..."]:
    """0-based class to mask value (class + 1); with to_class_index, the only such conversions."""
    return labels + 1


def to_class_index(values: Int[np.ndarray, "..."]) -> Int[np.ndarray, "..."]:
    """Mask value 1..C to 0-based class. Background and ignore have none: ValueError."""
    if values.size and (values.min() < 1 or values.max() >= IGNORE):
        raise UserError("background (0) and ignore (255) are no classes; drop them first")
    return values - 1


def palette() -> UInt8[np.ndarray, "256 3"]:
    """The PASCAL VOC colour map: bit k of the index goes to bit 7 - k // 3 of channel k % 3."""
    index = np.arange(256)
    colours = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            colours[:, channel] |= (((index >> (3 * bit + channel)) & 1) << (7 - bit)).astype("u1")
    return colours


VOC = ClassList(
    (
        "aeroplane",
        "bicycle",
        "bird",
        "boat",
        "bottle",
        "bus",
        "car",
        "cat",
        "chair",
        "cow",
        "diningtable",
        "dog",
        "horse",
        "motorbike",
        "person",
        "pottedplant",
        "sheep",
        "sofa",
        "train",
        "tvmonitor",
    )
)
"""PASCAL VOC 2012, in the order of its masks."""

COCO = ClassList(
    (
        "person",
        "bicycle",
        "car",
        "motorcycle",
        "airplane",
        "bus",
        "train",
        "truck",
        "boat",
        "traffic light",
        "fire hydrant",
        "stop sign",
        "parking meter",
        "bench",
        "bird",
        "cat",
        "dog",
        "horse",
        "sheep",
        "cow",
        "elephant",
        "bear",
        "zebra",
        "giraffe",
        "backpack",
        "umbrella",
        "handbag",
        "tie",
        "suitcase",
        "frisbee",
        "skis",
        "snowboard",
        "sports ball",
        "kite",
        "baseball bat",
        "baseball glove",
        "skateboard",
        "surfboard",
        "tennis racket",
        "bottle",
        "wine glass",
        "cup",
        "fork",
        "knife",
        "spoon",
        "bowl",
        "banana",
        "apple",
        "sandwich",
        "orange",
        "broccoli",
        "carrot",
        "hot dog",
        "pizza",
        "donut",
        "cake",
        "chair",
        "couch",
        "potted plant",
        "bed",
        "dining table",
        "toilet",
        "tv",
        "laptop",
        "mouse",
        "remote",
        "keyboard",
        "cell phone",
        "microwave",
        "oven",
        "toaster",
        "sink",
        "refrigerator",
        "book",
        "clock",
        "vase",
        "scissors",
        "teddy bear",
        "hair drier",
        "toothbrush",
    )
)
"""The 80 things of COCO 2014 and 2017, in the order of their category numbers."""

SALIENCY = ClassList(("saliency",))
"""What the one class of a saliency map is called."""

EDGES = ("edge",)
"""What the one class of an edge map is called."""


def difference(own: Sequence[str], names: Sequence[str]) -> str:
    """How the classes ``own`` differ from those of a data set, in words for a message."""
    for number, (one, other) in enumerate(zip(own, names, strict=False), start=1):
        if one != other:
            return f"{one} as class {number}, the data set has {other}"
    return f"{len(own)} class(es), the data set has {len(names)}"
