"""Masks and score maps in other programs' layouts: one table row per format.

A writer gets one image and returns the files of it as bytes; formats that hold all images in one
file make it afterwards from what was noted of each. Files carry the names of the photographs. Not
here: which images, the order, and writing to disk (``stages.export``); reading masks back
(``corrected``).
"""

import io
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from PIL import Image

from wsss_jax.data.classes import palette
from wsss_jax.data.files import mask_png
from wsss_jax.data.photographs import fit_mask
from wsss_jax.data.stores import Holds
from wsss_jax.export import write_annotations, write_coco
from wsss_jax.export.exported import Options, Picture, Whole, Written
from wsss_jax.export.overlay import drawn_over
from wsss_jax.formats.write_dictionary import AsTensor, dictionary_npy
from wsss_jax.ops.resize import resize
from wsss_jax.types import Kind, ScoreMaps, Size

IRN_STRIDE = 4
"""Pixels per cell of the coarse maps that IRN's random walk reads."""


class Writer(NamedTuple):
    """How one format is written.

    one: the files of an image, and what is noted of it. whole: the files of all images, from
    their notes in order. holds: what a picture must bring, a mask or score maps. kind: of those
    maps, None for activations and probabilities. advice: what the user does with the folder.
    """

    one: Callable[[Picture, Options], Written]
    advice: str
    holds: Holds = "masks"
    whole: Whole | None = None
    kind: Kind | None = None


def _png(picture: Picture, options: Options) -> Written:
    return Written({f"{picture.stem}.png": mask_png(picture.pixels, palette())})


def _grey_png(picture: Picture, options: Options) -> Written:
    buffer = io.BytesIO()
    Image.fromarray(picture.pixels).save(buffer, "PNG")
    return Written({f"{picture.stem}.png": buffer.getvalue()})


def _overlay(picture: Picture, options: Options) -> Written:
    photo = picture.source.image(picture.id)
    drawn = drawn_over(photo, fit_mask(picture.pixels, photo.shape[:2]), picture.classes)
    buffer = io.BytesIO()
    Image.fromarray(drawn).save(buffer, "JPEG", quality=90)
    return Written({f"{picture.stem}.jpg": buffer.getvalue()})


def _irn(picture: Picture, options: Options) -> Written:
    """What ``make_cam.py`` writes: keys and cam are tensors there, which later stages move.

    The record itself stands beside them (``prior_readers.EXPORTED``) and makes no difference there.
    """
    fields = _fields(picture.scores)
    content = fields | {"keys": AsTensor(fields["keys"]), "cam": AsTensor(fields["cam"])}
    return Written({f"{picture.stem}.npy": dictionary_npy(content)})


def _npz(picture: Picture, options: Options) -> Written:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **_fields(picture.scores))  # type: ignore[arg-type]
    return Written({f"{picture.stem}.npz": buffer.getvalue()})


def _psa(picture: Picture, options: Options) -> Written:
    """What ``infer_cls.py --out_cam`` writes and ``infer_aff.py`` reads: class to map."""
    maps = picture.scores
    full = _on_grid(maps, maps.size)
    content = {int(label): full[n] for n, label in enumerate(maps.classes)}
    return Written({f"{picture.stem}.npy": dictionary_npy(content)})


def _psa_crf(picture: Picture, options: Options) -> Written:
    """What ``train_aff.py`` reads: background as 0, then class + 1, probabilities of each pixel."""
    maps = picture.scores
    full = _on_grid(maps, maps.size)
    background = np.maximum(1 - full.sum(axis=0), 0).astype(np.float32)
    content = {0: background} | {int(c) + 1: full[n] for n, c in enumerate(maps.classes)}
    return Written({f"{picture.stem}.npy": dictionary_npy(content)})


def _fields(maps: ScoreMaps) -> dict[str, np.ndarray]:
    """IRN's fields: keys (k,), cam (k,h,w) at its stride, high_res (k,H,W); and the record."""
    coarse: Size = (-(-maps.size[0] // IRN_STRIDE), -(-maps.size[1] // IRN_STRIDE))
    return {
        "keys": maps.classes.astype(np.int64),
        "cam": _on_grid(maps, coarse),
        "high_res": _on_grid(maps, maps.size),
        "peak": maps.peak.astype(np.float32),
        maps.kind: np.ascontiguousarray(maps.scores.transpose(2, 0, 1), np.float16),
    }


def _on_grid(maps: ScoreMaps, grid: Size) -> Float[np.ndarray, "k h w"]:
    """The maps on a grid: as they are where they have it, else enlarged or averaged."""
    scores = resize(maps.scores.astype(np.float32), grid)
    return np.ascontiguousarray(scores.transpose(2, 0, 1), np.float32)


_TOOL = "file names are those of the photographs; classes count from 0"
WRITERS: Mapping[str, Writer] = MappingProxyType({
    "png": Writer(_png, "palette PNGs: 0 background, class + 1, 255 not decided; "
                  "read them with PIL (OpenCV and imageio would turn them into colours)"),
    "png-grey": Writer(_grey_png, "the same values in grey PNGs, for OpenCV and imageio; they look "
                       "black"),
    "overlay": Writer(_overlay, "photographs with their masks drawn over, to look at"),
    "coco": Writer(write_coco.coco, "an instances file; objects are connected regions, which image "
                   "labels cannot split further", whole=write_coco.coco_file),
    "yolo": Writer(write_coco.yolo, "give data.yaml to the training; nothing is held out for "
                   "validation, so split it or replace `val`", whole=write_coco.yolo_file),
    "label-studio": Writer(write_annotations.label_studio, "make a project with label_config.xml, "
                           "connect the photographs as local storage, import tasks.json",
                           whole=write_annotations.label_studio_files),
    "cvat": Writer(write_annotations.cvat, "make a task with the photographs and, under Raw, the "
                   "content of labels.json; upload annotations.xml as CVAT 1.1; tag what is right "
                   "approved",
                   whole=write_annotations.cvat_files),
    "irn": Writer(_irn, f"IRN's cam_out_dir; {_TOOL}", "scores"),
    "psa": Writer(_psa, f"PSA's --cam_dir of infer_aff.py; {_TOOL}", "scores"),
    "psa-crf": Writer(_psa_crf, "PSA's --la_crf_dir or --ha_crf_dir of train_aff.py; 0 is "
                      "background, class + 1", "scores", kind="probability"),
    "npz": Writer(_npz, f"keys, cam (stride 4) and high_res, read without pickle; {_TOOL}",
                  "scores"),
})  # fmt: skip
"""Formats by name. IRN: Ahn, Cho & Kwak 2019; PSA: Ahn & Kwak 2018.

Files of irn and npz carry the record: `wsss import` gives it back bit for bit, with its peaks. In
PSA's dictionaries every key is a class, so there is no room: maps on a coarser grid come back
enlarged, and without their peaks."""
