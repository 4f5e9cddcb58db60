"""Files as other tools write them, of any size; PyTorch's tensors are written without PyTorch."""

import io
import pickle
import struct
import sys
from dataclasses import dataclass
from types import ModuleType
from unittest.mock import patch

import numpy as np
from PIL import Image

from wsss_jax.data import classes


def _module(name, **members):
    module = ModuleType(name)
    for key, member in members.items():
        member.__module__, member.__qualname__ = name, key
        setattr(module, key, member)
    return module


class FloatStorage:
    pass


class LongStorage:
    pass


def _rebuild_tensor_v2():
    pass


def _load_from_bytes():
    pass


TORCH = {
    "torch": _module("torch", FloatStorage=FloatStorage, LongStorage=LongStorage),
    "torch._utils": _module("torch._utils", _rebuild_tensor_v2=_rebuild_tensor_v2),
    "torch.storage": _module("torch.storage", _load_from_bytes=_load_from_bytes),
}


class _Pickled:
    """Stands for an object that is pickled as a call."""

    def __init__(self, function, arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class _Reference(_Pickled):
    """Stands for a storage that the pickle only refers to."""


class _StreamPickler(pickle.Pickler):
    def persistent_id(self, value):
        return ("storage", *value.call[1]) if isinstance(value, _Reference) else None


def tensor(values):
    """A tensor as PyTorch's ``__reduce_ex__`` describes it, its storage as an old stream."""
    values = np.ascontiguousarray(values)
    kind = LongStorage if values.dtype.kind == "i" else FloatStorage
    values = values.astype(np.int64 if kind is LongStorage else np.float32)
    file = io.BytesIO()
    for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}):
        pickle.dump(part, file, 2)
    reference = _Reference("storage", (kind, "7", "cpu", values.size, None))
    with patch.dict(sys.modules, TORCH):
        _StreamPickler(file, 2).dump(reference)
    pickle.dump(["7"], file, 2)
    file.write(struct.pack("<q", values.size) + values.tobytes())
    storage = _Pickled(_load_from_bytes, (file.getvalue(),))
    strides = tuple(n // values.itemsize for n in values.strides)
    return _Pickled(_rebuild_tensor_v2, (storage, 0, values.shape, strides, False, {}))


def save(path, content):
    """``np.save`` of a dictionary, tensors and all."""
    with patch.dict(sys.modules, TORCH):
        np.save(path.with_suffix(""), content)


VOC = 20
"""Classes of the data set whose planes networks of segmentation write."""


def background(scores):
    """What is missing to 1, so that all of it are probabilities."""
    return 1 - scores.sum(0)


def content(layout, classes, scores, coarse):
    """What a tool would save; scores (k,H,W) in [0, 1], coarse the same at stride 4."""
    numbers = np.asarray(classes, np.int64)
    shifted = np.concatenate([[0], numbers + 1])
    flat = {int(n): m for n, m in zip(classes, scores, strict=True)}
    whole = np.zeros((VOC, *scores.shape[1:]), np.float32)
    whole[np.clip(numbers, 0, VOC - 1)] = scores
    planes = np.concatenate([background(scores)[np.newaxis], whole])
    logits = np.log(np.maximum(planes, 1e-9))[np.newaxis]
    behind = {k + 1: n + 1 for k, n in enumerate(classes)}
    return {
        "dhr": {"keys": shifted, "masks": planes[[0, *behind.values()]].astype(np.float16)}
        if max(behind.values(), default=0) <= VOC
        else {},
        "msc_seg": {"msc_seg": logits},
        "weclip": {"segs": logits[:, :, ::2, ::2], "msc_segs": logits},
        "array": whole,
        "psa_cam": flat,
        "mctformer": flat,
        "psa_crf": {0: background(scores)} | {n + 1: m for n, m in flat.items()},
        "irn": {"keys": tensor(numbers), "cam": tensor(coarse), "high_res": scores},
        "puzzle": {"keys": shifted, "cam": tensor(coarse), "hr_cam": scores},
        "puzzle_rw": {"keys": shifted, "rw": scores},
        "ccam": {"keys": np.array([0, 1]), "cam": tensor(coarse[:1]), "hr_cam": scores[:1]},
        "clipes": {"keys": numbers, "attn_highres": scores.astype(np.float16)},
    }[layout]


def write(layout, folder, id, classes, scores):
    """One image's file in any layout but the stores."""
    folder.mkdir(exist_ok=True, parents=True)
    if layout == "saliency_png":
        Image.fromarray((scores[0] * 255).astype(np.uint8)).save(folder / f"{id}.png")
    elif layout == "oaa":
        for number, one in zip(classes, scores, strict=True):
            Image.fromarray((one * 255).astype(np.uint8)).save(folder / f"{id}_{number}.png")
    elif layout == "mask_png":
        rows = np.concatenate([np.full_like(scores[:1], 0.3), scores])
        values = np.array([0, *(n + 1 for n in classes)], np.uint8)[rows.argmax(0)]
        Image.fromarray(values).save(folder / f"{id}.png")
    else:
        coarse = scores[:, ::4, ::4]
        save(folder / f"{id}.npy", content(layout, classes, scores, coarse))


@dataclass(frozen=True)
class Labelled:
    """A source of PASCAL VOC's classes that knows labels and one size only."""

    table: dict
    shape: tuple[int, int]

    name = "toy"
    classes = classes.VOC
    has_background = True

    @property
    def ids(self):
        return tuple(self.table)

    def labels(self, id):
        return np.isin(np.arange(VOC), self.table[id])

    def size(self, id):
        return self.shape

    def image(self, id):
        return np.zeros((*self.shape, 3), np.uint8)

    def mask(self, id):
        return None

    def encoded(self, id):
        return b""
