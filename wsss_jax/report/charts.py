"""Charts and tables as inline SVG and HTML text: no script draws them, every string is escaped.

Colours are CSS classes (``s0`` … ``s7``, ``up``, ``down``), so light, dark and print agree with
the page. Not here: pictures (``figures``), the page (``page``).
"""

import math
import textwrap
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

from wsss_jax.report.content import Gain, StageScore

_WIDTH, _LABELS, _VALUES = 760, 210, 130
_ROW = 26
_SERIES = 8
CURVES = 6
"""Lines of the chart over the threshold; more cannot be told apart."""

Number = int | float


def steps(stages: Sequence[StageScore]) -> list[StageScore]:
    """The best stage of each group, in the order in which the groups first appear."""
    best: dict[str, StageScore] = {}
    for stage in stages:
        group = stage.group or stage.name
        if group not in best or stage.miou > best[group].miou:
            best[group] = stage
    return list(best.values())


def waterfall(stages: Sequence[StageScore]) -> str:
    """mIoU stage by stage: a dot with its interval, and a bar from the stage before."""
    ends = [v for s in stages for v in (s.miou, s.low, s.high) if v is not None]
    axis = _Axis.around(ends)
    height = _ROW * len(stages) + 30
    marks, before = [axis.grid(height)], None
    for row, stage in enumerate(stages):
        marks.append(_waterfall_row(stage, before, axis, 16 + row * _ROW))
        before = stage.miou
    return _svg("mIoU stage by stage", height, marks)


def class_bars(stages: Sequence[StageScore], classes: Sequence[str]) -> str:
    """IoU of each class that was counted, one bar per stage; at most eight stages, the best."""
    chosen = sorted(range(len(stages)), key=lambda i: -stages[i].miou)[:_SERIES]
    shown = [stages[i] for i in sorted(chosen)]
    axis = _Axis(0.0, 1.0, _LABELS - 80, _WIDTH - 60)
    band = 9 * len(shown) + 12
    each = counted(stages, classes)
    height = band * len(each) + 28
    marks = [axis.grid(height)]
    for row, at in enumerate(each):
        top = 8 + row * band
        marks.append(_text(axis.left - 10, top + (band - 12) / 2 + 4, classes[at], "label end"))
        for series, stage in enumerate(shown):
            marks.append(_bar(stage, series, float(stage.per_class[at]), axis, top + 9 * series))
    legend = _legend([_full_name(stage) for stage in shown])
    return legend + _svg("IoU of each class", height, marks)


def counted(stages: Sequence[StageScore], classes: Sequence[str]) -> list[int]:
    """Which classes any stage has a number for; a run that scores a few does not list them all."""
    values = np.stack([stage.per_class for stage in stages])
    return [at for at in range(len(classes)) if np.isfinite(values[:, at]).any()]


def few(
    curves: Mapping[str, tuple[np.ndarray, np.ndarray]], most: int = CURVES
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """At most ``most`` curves, in their order: the first, the last, and of the rest the highest.

    The last one is the result, the first one what it started from.
    """
    names = list(curves)
    best = sorted(names[1:-1], key=lambda name: -_top(curves[name][1]))
    kept = {*names[:1], *names[-1:], *best[: max(most - 2, 0)]}
    return {name: curves[name] for name in names if name in kept}


def threshold_curves(
    curves: Mapping[str, tuple[np.ndarray, np.ndarray]],
) -> str:
    """mIoU over the threshold, one line each, the best point marked."""
    values = np.concatenate([mious for _, mious in curves.values()])
    axis = _Axis.around(values[np.isfinite(values)].tolist())
    height, left, bottom, right = 300, 56, 262, _WIDTH - 20
    marks = [_curve_grid(axis, left, right, bottom)]
    for series, (name, (at, mious)) in enumerate(curves.items()):
        xs = left + (right - left) * np.asarray(at, np.float64)
        ys = bottom - (bottom - 14) * axis.share(np.asarray(mious, np.float64))
        known = np.isfinite(ys)
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(xs[known], ys[known], strict=True))
        if not points:
            continue
        top = int(np.nanargmax(mious))
        dot = f'<circle cx="{xs[top]:.1f}" cy="{ys[top]:.1f}" r="4"/>'
        title = f"{name}: best {_percent(float(mious[top]))} at threshold {float(at[top]):.2f}"
        style = f"s{series % _SERIES} d{series // _SERIES % 3}"
        marks.append(
            f'<g class="curve {style}"><title>{escape(title)}</title>'
            f'<polyline points="{points}"/>{dot}</g>'
        )
    return _legend(list(curves)) + _svg("mIoU over the threshold", height, marks)


def _top(values: np.ndarray) -> float:
    return float(np.nanmax(values)) if np.isfinite(values).any() else 0.0


def stage_table(stages: Sequence[StageScore]) -> str:
    """Every stage in numbers: mIoU, interval, gain, threshold and its origin, supervision."""
    gains = any(stage.gain for stage in stages)
    taught = any(stage.supervision for stage in stages)
    heads = ["Stage", "Split", "mIoU %", "95 % interval"]
    heads += ["Gain"] if gains else []
    heads += ["Threshold", "Threshold chosen", *(["Supervision"] if taught else [])]
    best: dict[tuple[str, str], float] = {}
    for stage in stages:
        chain = (stage.split, stage.threshold_source)
        best[chain] = max(stage.miou, best.get(chain, 0.0))
    rows = []
    for stage in stages:
        kind = ' class="best"' if stage.miou == best[stage.split, stage.threshold_source] else ""
        cells = [_cell(_full_name(stage)), _cell(stage.split), _number(stage.miou)]
        cells.append(_cell(_interval(stage.low, stage.high), "number"))
        cells += [_gain_cell(stage.gain)] if gains else []
        at = "–" if stage.threshold is None else f"{stage.threshold:.2f}"
        cells += [_cell(at, "number"), _cell(stage.threshold_source)]
        cells += [_cell(stage.supervision)] if taught else []
        rows.append(f"<tr{kind}>{''.join(cells)}</tr>")
    return _table(heads, rows)


def class_table(stages: Sequence[StageScore], classes: Sequence[str]) -> str:
    """Every stage × every class that was counted, in numbers; stages of which none was are not."""
    each = counted(stages, classes)
    heads = ["Stage", "Split", "Threshold chosen", *(classes[at] for at in each)]
    rows = []
    for stage in (one for one in stages if np.isfinite(one.per_class).any()):
        cells = [_cell(_full_name(stage)), _cell(stage.split), _cell(stage.threshold_source)]
        cells += [_number(float(stage.per_class[at])) for at in each]
        rows.append(f"<tr>{''.join(cells)}</tr>")
    return _table(heads, rows)


class _Axis:
    """Where values of one scale lie on the page, in SVG units."""

    def __init__(self, low: Number, high: Number, left: Number, right: Number) -> None:
        self.low, self.high, self.left, self.right = low, high, left, right

    @classmethod
    def around(cls, values: Sequence[float]) -> "_Axis":
        low = math.floor(20 * (min(values, default=0.0) - 0.01)) / 20
        high = math.ceil(20 * (max(values, default=1.0) + 0.01)) / 20
        return cls(max(0.0, low), min(1.0, high), _LABELS, _WIDTH - _VALUES)

    def share(self, value: np.ndarray) -> np.ndarray:
        return (value - self.low) / (self.high - self.low)

    def at(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return self.left + (self.right - self.left) * share

    def ticks(self) -> list[float]:
        step = next(s for s in (0.01, 0.02, 0.05, 0.1, 0.2) if (self.high - self.low) / s <= 8)
        first = math.ceil(self.low / step - 1e-9)
        return [k * step for k in range(first, math.floor(self.high / step + 1e-9) + 1)]

    def grid(self, height: Number) -> str:
        lines = []
        for value in self.ticks():
            x = self.at(value)
            lines.append(
                f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="4" y2="{height - 20}"/>'
            )
            lines.append(_text(x, height - 6, f"{100 * value:.0f}", "tick middle"))
        return "".join(lines)


def _waterfall_row(stage: StageScore, before: float | None, axis: _Axis, y: Number) -> str:
    x, parts = axis.at(stage.miou), []
    change = "" if before is None else f" ({100 * (stage.miou - before):+.1f})"
    if before is not None:
        start, kind = axis.at(before), "up" if stage.miou >= before else "down"
        parts.append(
            f'<line class="link" x1="{start:.1f}" x2="{start:.1f}" y1="{y - _ROW}" y2="{y}"/>'
        )
        parts.append(
            f'<rect class="{kind}" x="{min(start, x):.1f}" y="{y - 7}" '
            f'width="{abs(x - start):.1f}" height="14" rx="2"/>'
        )
    if stage.low is not None and stage.high is not None:
        low, high = axis.at(stage.low), axis.at(stage.high)
        parts.append(f'<line class="whisker" x1="{low:.1f}" x2="{high:.1f}" y1="{y}" y2="{y}"/>')
    parts.append(f'<circle class="dot" cx="{x:.1f}" cy="{y}" r="4"/>')
    parts.append(_stage_label(axis.left - 12, y + 4, _full_name(stage)))
    parts.append(_text(axis.right + 14, y + 4, f"{_percent(stage.miou)}{change}", "value"))
    at = f"{_full_name(stage)}: {_percent(stage.miou)} {_interval(stage.low, stage.high)}"
    return f"<g><title>{escape(at)}</title>{''.join(parts)}</g>"


def _bar(stage: StageScore, series: int, value: float, axis: _Axis, y: Number) -> str:
    if math.isnan(value):
        return _text(axis.left + 4, y + 7, "–", "tick")
    width = axis.at(value) - axis.left
    title = escape(f"{stage.name}: {_percent(value)}")
    return (
        f'<g class="s{series}"><title>{title}</title>'
        f'<rect class="fill" x="{axis.left}" y="{y}" width="{width:.1f}" height="7" rx="1.5"/>'
        + _text(axis.left + width + 5, y + 7, f"{100 * value:.0f}", "tick")
        + "</g>"
    )


def _curve_grid(axis: _Axis, left: Number, right: Number, bottom: Number) -> str:
    parts = []
    for value in axis.ticks():
        y = bottom - (bottom - 14) * (value - axis.low) / (axis.high - axis.low)
        parts.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_text(left - 8, y + 4, f"{100 * value:.0f}", "tick end"))
    for step in range(0, 11, 2):
        x = left + (right - left) * step / 10
        parts.append(_text(x, bottom + 18, f"{step / 10:.1f}", "tick middle"))
    parts.append(_text((left + right) / 2, bottom + 34, "threshold on the score", "tick middle"))
    return "".join(parts)


def _legend(names: Sequence[str]) -> str:
    items = "".join(
        f'<li class="s{k % _SERIES} d{k // _SERIES % 3}"><i></i>{escape(name)}</li>'
        for k, name in enumerate(names)
    )
    return f'<ul class="legend">{items}</ul>'


def _svg(title: str, height: Number, marks: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(title)}">'
        f"{''.join(marks)}</svg>"
    )


def _text(x: Number, y: Number, text: str, kind: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}">{escape(text)}</text>'


def _full_name(stage: StageScore) -> str:
    known = not stage.group or stage.group in stage.name or stage.name in stage.group
    return stage.name if known else f"{stage.group}: {stage.name}"


def _stage_label(x: Number, y: Number, name: str, length: int = 30) -> str:
    """A long name is small, a longer one on two lines, parted at a space where there is one."""
    if len(name) <= length + 6:
        return _text(x, y, name, "label end" if len(name) <= length else "tick end")
    first, *rest = textwrap.wrap(name, length + 6)
    second = " ".join(rest)
    second = second if len(second) <= length + 6 else f"{second[: length + 5]}…"
    return _text(x, y - 6, first, "tick end") + _text(x, y + 5, second, "tick end")


def _percent(value: float) -> str:
    return "–" if math.isnan(value) else f"{100 * value:.1f} %"


def _interval(low: Number | None, high: Number | None) -> str:
    return "–" if low is None or high is None else f"{100 * low:.1f} – {100 * high:.1f}"


def _gain_cell(gain: Gain | None) -> str:
    if gain is None:
        return _cell("–", "number")
    text = f"{100 * gain.mean:+.1f} ({100 * gain.low:+.1f} … {100 * gain.high:+.1f})"
    certain = gain.low > 0 or gain.high < 0
    title = f"against {gain.reference}; paired bootstrap, 95 %"
    kind = "number certain" if certain else "number"
    return f'<td class="{kind}" title="{escape(title)}">{text}</td>'


def _number(value: float) -> str:
    return _cell("–" if math.isnan(value) else f"{100 * value:.1f}", "number")


def _cell(text: str, kind: str = "") -> str:
    return f'<td class="{kind}">{escape(text)}</td>' if kind else f"<td>{escape(text)}</td>"


def _table(heads: Sequence[str], rows: Sequence[str]) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in heads)
    return (
        f'<div class="wide"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )
