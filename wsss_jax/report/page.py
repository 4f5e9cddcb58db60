"""Writes the report: one HTML file with everything in it, which needs no server and no network.

The template, style and scripts are the package's own files; their hashes stand in the page's
content security policy, which forbids every other script and every connection. Data goes in as
escaped text or as JSON in which no ``<`` is left, so that no name can end a tag or start one.
"""

import base64
import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from wsss_jax.config import Record
from wsss_jax.data.files import write_atomic
from wsss_jax.report import charts, figures
from wsss_jax.report.content import Picture, Report, StageScore

_SCRIPTS = ("paint.js", "whatif.js", "report.js")


def write_page(path: Path, report: Report, pictures: Iterable[Picture]) -> Path:
    """Write the page, whole or not at all, and return its path.

    Pictures are encoded one by one, so the iterable may load them as it goes; about 0.1-0.2 MB
    each, and 5-10 KB more for every rule. Raises ValueError when an id comes twice, a label is no
    class of the report, or the pictures disagree with it otherwise.
    """
    index: list[Record] = []
    records: list[str] = []
    seen: set[str] = set()
    for picture in pictures:
        if picture.id in seen:
            raise ValueError(f"picture {picture.id!r} comes twice; ids must differ")
        seen.add(picture.id)
        index.append(summary(picture, report))
        records.append(json_tag(record(picture), f"picture-{len(records)}"))
    write_atomic(path, _page(report, index, records).encode())
    return path


def summary(picture: Picture, report: Report) -> Record:
    """What sorting and filtering need: labels as mask values, size, and IoUs at full resolution."""
    _check_names(picture, report)
    classes = report.classes
    height, width = figures.fitted(
        (picture.photo.shape[0], picture.photo.shape[1]), figures.PHOTO_SIDE
    )
    return {
        "id": picture.name or picture.id,
        "uncertainty": None if picture.uncertainty is None else round(picture.uncertainty, 4),
        "labels": [classes.index(label) for label in picture.labels],
        "size": [width, height],
        "ious": _ious(picture, report),
        "truth": picture.truth is not None,
        "maps": list(picture.maps),
        "masks": list(picture.masks),
        "rules": list(picture.rules),
        "trust": list(picture.trust),
        "doubts": list(picture.doubts),
    }


def record(picture: Picture) -> Record:
    """The pixels of one picture: the photograph as a data URI, all else as packed values."""
    shared = {name for name, scores in picture.rules.items() if scores is picture.maps.get(name)}
    return {
        "photo": figures.photo_uri(picture.photo),
        "maps": _planes(picture.maps),
        "rules": _planes({n: s for n, s in picture.rules.items() if n not in shared}),
        "trust": _planes(picture.trust),
        "doubts": _planes(picture.doubts),
        "masks": {name: figures.mask_values(mask) for name, mask in picture.masks.items()},
        "truth": None if picture.truth is None else figures.mask_values(picture.truth),
    }


def json_tag(value: Any, id: str) -> str:
    """A data block for the page: JSON in which no character can be taken for HTML."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    text = text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
    return f'<script type="application/json" id="{escape(id)}">{text}</script>'


def fill(template: str, values: Mapping[str, str]) -> str:
    """The template with each ``{{name}}`` replaced, in one pass: values are never filled again."""
    return re.sub(r"\{\{(\w+)\}\}", lambda match: values[match[1]], template)


def _check_names(picture: Picture, report: Report) -> None:
    classes = report.classes
    unknown = [label for label in picture.labels if label not in classes[1:]]
    if unknown:
        raise ValueError(
            f"{picture.id}: label {unknown[0]!r} is none of the report's classes "
            f"({', '.join(classes[1:])})"
        )
    strange = [name for name in picture.rules if name not in report.rules]
    if strange:
        raise ValueError(
            f"{picture.id}: rule {strange[0]!r} is none of the report's rules "
            f"({', '.join(report.rules)})"
        )
    for name, shares in picture.trust.items():
        if shares.shape[-1] != len(report.systems):
            raise ValueError(
                f"{picture.id}: trust {name!r} is of {shares.shape[-1]} systems, the report has "
                f"{len(report.systems)}"
            )


def _planes(layers: Mapping[str, np.ndarray]) -> dict[str, Record]:
    found = {}
    for name, scores in layers.items():
        values, size = figures.map_values(scores)
        found[name] = {"values": values, "size": [size[1], size[0]], "count": scores.shape[-1]}
    return found


def _ious(picture: Picture, report: Report) -> dict[str, list[float | None]]:
    """IoU per mask and mask value; None for what does not occur or is not scored."""
    found: dict[str, list[float | None]] = {}
    if picture.truth is None:
        return found
    for name, mask in picture.masks.items():
        try:
            values = figures.image_ious(mask, picture.truth, len(report.classes))
        except ValueError as problem:
            raise ValueError(f"{picture.id}, mask {name!r}: {problem}") from problem
        found[name] = [
            round(float(value), 4) if c in report.scored and not math.isnan(value) else None
            for c, value in enumerate(values)
        ]
    return found


def _page(report: Report, index: list[Record], records: list[str]) -> str:
    style, scripts = _asset("report.css"), [_asset(name) for name in _SCRIPTS]
    data = {**_look(report), "pictures": index}
    values = {
        "policy": _policy(style, scripts),
        "style": style,
        "title": escape(report.title),
        "lead": "".join(f"<p>{escape(sentence)}</p>" for sentence in report.lead),
        "notes": "".join(f"<p>{escape(note)}</p>" for note in report.notes),
        "settings": _settings(report.settings),
        "results": _results(report),
        "details": _details(report),
        "pictures": str(len(index)),
        "data": "\n".join([json_tag(data, "report"), *records]),
        "scripts": "\n".join(f"<script>{script}</script>" for script in scripts),
    }
    return fill(_asset("template.html"), values)


def _look(report: Report) -> Record:
    """Names, colours and rules, as the page's scripts want them."""
    palettes = figures.class_colours(len(report.classes))
    colours = figures.system_colours(len(report.systems)).tolist()
    return {
        "classes": list(report.classes),
        "palettes": {name: table.tolist() for name, table in palettes.items()},
        "heat": figures.heat_ramp().tolist(),
        "scored": list(report.scored),
        "systems": [
            {"name": name, "colour": colour}
            for name, colour in zip(report.systems, colours, strict=True)
        ],
        "rules": {
            name: {"group": rule.group, "threshold": rule.threshold}
            for name, rule in report.rules.items()
        },
    }


def _results(report: Report) -> str:
    """Charts for each split and way of choosing thresholds, and the curves over the threshold."""
    if not report.stages:
        return "<p>There are no true masks to judge by.</p>"
    panels = []
    sources = dict.fromkeys((stage.split, stage.threshold_source) for stage in report.stages)
    for split, source in sources:
        stages = [s for s in report.stages if (s.split, s.threshold_source) == (split, source)]
        panels.append(_panel(stages, report.classes, f"{split} · threshold {source}"))
    parts = [f'<div id="panels">{"".join(panels)}</div>']
    if report.curves:
        parts.append(
            _figure(
                "mIoU over the threshold",
                charts.threshold_curves(charts.few(report.curves)),
                kind="curves",
            )
        )
    return "".join(parts)


def _details(report: Report) -> str:
    """The numbers of all stages and of every class, folded away."""
    if not report.stages:
        return ""
    stages = _figure("All stages", charts.stage_table(report.stages))
    table = charts.class_table(report.stages, report.classes)
    return (
        f"<details><summary>All stages in numbers</summary>{stages}</details>"
        f"<details><summary>IoU of every class</summary>{table}</details>"
    )


def _panel(stages: list[StageScore], classes: tuple[str, ...], name: str) -> str:
    shown = charts.steps(stages)
    picked = " The best of each group is shown, picked on this split's truth."
    note = picked if len(shown) < len(stages) else ""
    spread = ", dot with its 95 % interval" if any(s.low is not None for s in shown) else ""
    body = _figure(
        "mIoU stage by stage",
        charts.waterfall(shown),
        f"Percent{spread}; in brackets the step from the row above.{note}",
    )
    if charts.counted(shown, classes):
        bars = charts.class_bars(shown, classes)
        body += _figure("IoU of each class", bars, "Percent.", kind="bars")
    return (
        f'<section class="panel" data-name="{escape(name)}"><h3>{escape(name)}</h3>{body}</section>'
    )


def _figure(title: str, body: str, caption: str = "", *, kind: str = "") -> str:
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f'<figure class="chart {kind}"><h4>{escape(title)}</h4>{body}{below}</figure>'


def _settings(settings: Mapping[str, str]) -> str:
    rows = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in settings.items()
    )
    return (
        f"<details><summary>Settings and versions</summary><dl>{rows}</dl></details>"
        if rows
        else ""
    )


def _policy(style: str, scripts: list[str]) -> str:
    allowed = " ".join(_hash(script) for script in scripts)
    return (
        f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {allowed}; "
        "base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _asset(name: str) -> str:
    return resources.files("wsss_jax.report").joinpath(name).read_text(encoding="utf-8")
