"""Masks for the programs in which people correct them: Label Studio and CVAT.

Both get one brush mask per class and image: that is what a person repaints. Pixels that are not
decided (255) are in no mask. Sources: Label Studio's task format and brush labels; CVAT's
"XML annotation format 1.1" (masks since CVAT 2.3).
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import escape, quoteattr

import numpy as np
from jaxtyping import Bool

from wsss_jax.data.classes import ClassList, palette, to_mask_index
from wsss_jax.export.exported import APPROVED, Options, Picture, Written
from wsss_jax.formats.run_lengths import brush_bytes, runs
from wsss_jax.ops.components import box_around

BRUSH, IMAGE = "brush", "image"
"""What label_config.xml calls its two parts; results name them."""


def label_studio(picture: Picture, options: Options) -> Written:
    """A task whose prediction is to be corrected; its photograph is found by ``image_url``."""
    height, width = picture.size
    results = [
        {
            "id": f"{picture.number}_{place}",
            "type": "brushlabels",
            "from_name": BRUSH,
            "to_name": IMAGE,
            "image_rotation": 0,
            "original_width": width,
            "original_height": height,
            "value": {"format": "rle", "rle": brush_bytes(region), "brushlabels": [name]},
        }
        for place, (name, region) in enumerate(_classes(picture))
    ]
    return Written({}, {
        "data": {IMAGE: options.image_url + quote(str(picture.name)), "id": picture.id},
        "predictions": [{"model_version": "wsss_jax", "result": results}],
    })  # fmt: skip


def label_studio_files(notes: Sequence[Any], classes: ClassList) -> Mapping[str, bytes]:
    """The tasks, and the labelling interface that they belong to."""
    labels = "".join(
        f"    <Label value={quoteattr(name)} background={quoteattr(colour)}/>\n"
        for name, colour in _colours(classes)
    )
    view = (
        f'<View>\n  <Image name="{IMAGE}" value="${IMAGE}" zoom="true"/>\n'
        f'  <BrushLabels name="{BRUSH}" toName="{IMAGE}">\n{labels}  </BrushLabels>\n</View>\n'
    )
    tasks = json.dumps(list(notes), ensure_ascii=False)
    return {"tasks.json": tasks.encode(), "label_config.xml": view.encode()}


def cvat(picture: Picture, options: Options) -> Written:
    """An image element; masks count along the rows of the box around them, outside first."""
    height, width = picture.size
    masks = []
    for name, region in _classes(picture):
        box = box_around(region)
        inner = region[box.top : box.bottom, box.left : box.right]
        counts = ", ".join(map(str, runs(inner.ravel()).tolist()))
        masks.append(
            f'    <mask label={quoteattr(name)} source="auto" occluded="0" rle="{counts}" '
            f'left="{box.left}" top="{box.top}" width="{inner.shape[1]}" '
            f'height="{inner.shape[0]}" z_order="0">\n    </mask>\n'
        )
    head = f'name={quoteattr(str(picture.name))} width="{width}" height="{height}"'
    return Written({}, {"name": str(picture.name), "head": head, "masks": "".join(masks)})


def cvat_files(notes: Sequence[Any], classes: ClassList) -> Mapping[str, bytes]:
    """annotations.xml, images numbered in the order of their names, as CVAT does; and the labels.

    labels.json is what CVAT's "Raw" field of a new task takes; the tag in it is for photographs
    whose masks are right.
    """
    colours = dict(_colours(classes))
    labels = "".join(
        f"        <label>\n          <name>{escape(name)}</name>\n          <color>{colour}</color>"
        "\n          <type>any</type>\n          <attributes>\n          </attributes>\n"
        "        </label>\n"
        for name, colour in colours.items()
    )
    images = "".join(
        f'  <image id="{number}" {note["head"]}>\n{note["masks"]}  </image>\n'
        for number, note in enumerate(sorted(notes, key=lambda note: note["name"]))
    )
    xml = (
        '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n  <version>1.1</version>\n'
        f"  <meta>\n    <task>\n      <size>{len(notes)}</size>\n      <mode>annotation</mode>\n"
        f"      <labels>\n{labels}      </labels>\n    </task>\n  </meta>\n{images}</annotations>\n"
    )
    raw: list[dict[str, Any]] = [
        {"name": name, "color": colour, "attributes": []} for name, colour in colours.items()
    ]
    if APPROVED not in colours:
        raw.append({"name": APPROVED, "color": "#ffffff", "type": "tag", "attributes": []})
    return {
        "annotations.xml": xml.encode(),
        "labels.json": json.dumps(raw, ensure_ascii=False, indent=1).encode(),
    }


def _classes(picture: Picture) -> Iterator[tuple[str, Bool[np.ndarray, "H W"]]]:
    """Names and pixels of the classes that the mask shows."""
    values = to_mask_index(np.arange(len(picture.classes))).tolist()
    for name, value in zip(picture.classes.names, values, strict=True):
        region = picture.pixels == value
        if region.any():
            yield name, region


def _colours(classes: ClassList) -> Iterator[tuple[str, str]]:
    """Names and their colours in masks, as #rrggbb."""
    values = to_mask_index(np.arange(len(classes)))
    for name, colour in zip(classes.names, palette()[values].tolist(), strict=True):
        yield name, "#" + "".join(f"{part:02x}" for part in colour)
