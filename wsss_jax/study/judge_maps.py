"""How faithful each explanation method is to a trained network, and how well its maps are placed.

Photographs are stretched to one square, as the published protocols do, and each method explains
every class that the network detects (probability above one half); an image without a detection is
explained for its strongest class, which only the perturbation curves use. Place is judged on
detected classes that the true mask shows. The numbers are those of ``ops.faithfulness`` and
``ops.localisation``; true boxes are those around the connected parts of a class in its mask.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, UInt8
from PIL import Image

from wsss_jax.config import lookup
from wsss_jax.data.classes import to_mask_index
from wsss_jax.datasets.table import Source
from wsss_jax.errors import UserError
from wsss_jax.explain import faithfulness as seeing
from wsss_jax.ops import faithfulness, images, localisation, metrics
from wsss_jax.ops.faithfulness import Seen
from wsss_jax.run.progress import meter
from wsss_jax.stages.parts.subject import Method, Subject
from wsss_jax.types import IGNORE

STEPS = tuple(step / 10 for step in range(11))
"""Shares of the pixels that are exchanged: ten published steps, and all of them."""

TIE = 1e-4
"""Drops that are closer are ties: methods of one formula differ by rounding alone."""


@dataclass(frozen=True)
class Judging:
    """What methods are judged on.

    Attributes:
        side: photographs are stretched to side × side pixels.
        few: methods that are judged on the first so many photographs, because they are expensive.
        curves: photographs, from the first, for the perturbation curves; 0 leaves them out.
        batch_size: photographs per call.
        threshold: of Loc, in (0, 1].
        alone: what others count for a photograph of one class; nan leaves such photographs out.
        keep: share of the pixels, the strongest, that images are seen through; 1 for all.
    """

    side: int = 224
    few: Mapping[str, int] = field(default_factory=dict)
    curves: int = 60
    batch_size: int = 10
    threshold: float = 0.25
    alone: float = faithfulness.NONE_THERE
    keep: float = 1.0


@dataclass(frozen=True)
class Card:
    """What one method reached: numbers by name, in [0, 1]; NaN where nothing was judged.

    photographs: it was judged on; curves: of them, for the perturbation curves. drops: per
    explained class, to compare methods row by row. seconds: of processor time to make the maps,
    without compiling.
    """

    method: str
    photographs: int
    curves: int
    numbers: Mapping[str, float]
    drops: Float[np.ndarray, " m"]
    seconds: float


class Photographs(NamedTuple):
    """A batch: images (b,S,S,3), labels (b,c), masks (b,S,S) or None, and what is detected."""

    images: Any
    labels: np.ndarray
    masks: np.ndarray | None
    detected: np.ndarray
    strongest: np.ndarray


def judge(
    subject: Subject,
    source: Source,
    methods: Mapping[str, Method],
    settings: Judging,
    *,
    ids: Sequence[str],
) -> Iterator[Card]:
    """One card for each method as it is done, on the photographs ``ids`` of the source.

    ``methods`` are those of the subject, or cheaper forms of them. Raises ValueError for data of
    other classes, or a name in ``settings.few`` that is no method.
    """
    if subject.classes.names != source.classes.names:
        raise UserError(
            f"the network knows {len(subject.classes)} classes, {source.name} has "
            f"{len(source.classes)}; judge on the data set it was trained on"
        )
    for name in settings.few:
        lookup(methods, name, "method to judge on fewer photographs")
    batches = list(_batches(subject, source, ids, settings))
    tools = _tools(subject)
    with meter("judge maps", len(methods), "methods") as bar:
        for name, method in methods.items():
            limit = settings.few.get(name, sum(len(batch.labels) for batch in batches))
            maps_of = _maps_of(subject, method, settings.keep)
            yield _card(name, maps_of, batches, limit, settings, tools)
            bar.advance(1, name)


def wins(cards: Sequence[Card], against: str) -> dict[str, float]:
    """How often each method's drop is below that of ``against``, on the rows that both have."""
    base = lookup({card.method: card for card in cards}, against, "method to compare with").drops
    rows = [min(len(card.drops), len(base)) for card in cards]
    return {
        card.method: faithfulness.win(card.drops[:count], base[:count], tie=TIE)
        for card, count in zip(cards, rows, strict=True)
    }


def table(cards: Sequence[Card], columns: Sequence[str]) -> str:
    """Markdown, in percent; a dash where nothing was judged."""
    head = ["method", "photographs", *(name.replace("_", " ") for name in columns)]
    lines = [f"| {' | '.join(head)} |", f"|---|{'--:|' * (len(head) - 1)}"]
    for card in cards:
        values = [card.numbers[name] for name in columns]
        cells = ["–" if np.isnan(value) else f"{100 * value:.1f}" for value in values]
        lines.append(f"| {' | '.join([card.method, str(card.photographs), *cells])} |")
    return "\n".join(lines)


FAITHFUL = (
    "increase",
    "drop",
    "drop_of_others",
    "retention",
    "retention_of_others",
    "keeps",
    "misses",
)
PLACED = ("loc", "proportion", "box", "accuracy", "precision", "iou", "f1")
CURVES = ("positive", "negative", "deletion", "insertion")
"""Columns of the table, in three groups."""


class _Tools(NamedTuple):
    through: Callable[..., Any]
    exchange: Callable[..., Array]


def _tools(subject: Subject) -> _Tools:
    """The two ways of asking the network again, each compiled once."""
    fill = np.asarray(subject.mean, np.float32)

    def through(weights: Any, pixels: Array, masks: Array, chosen: Array) -> seeing.Shown:
        logits = subject.logits(weights, _everywhere(pixels))
        return seeing.through_maps(logits, pixels, masks, chosen, fill=jnp.asarray(fill))

    def exchange(weights: Any, pixels: Array, maps: Array) -> Array:
        logits = subject.logits(weights, _everywhere(pixels))
        return seeing.exchanged(logits, pixels, jnp.zeros_like(pixels), maps, shares=STEPS)

    return _Tools(
        partial(jax.jit(through), subject.weights), partial(jax.jit(exchange), subject.weights)
    )


def _maps_of(
    subject: Subject, method: Method, keep: float
) -> Callable[[Any, Any], tuple[Array, Array]]:
    """From a batch to raw maps at the images' size, and what images are seen through."""

    def maps(weights: Any, pixels: Array, chosen: Array) -> tuple[Array, Array]:
        size = (pixels.shape[1], pixels.shape[2])
        raw = method(weights, pixels, _everywhere(pixels), chosen)
        return images.resize(raw, size), seeing.strongest(seeing.masks_of(raw, size), keep)

    return partial(jax.jit(maps), subject.weights)


def _card(
    name: str,
    maps_of: Callable[[Any, Any], tuple[Array, Array]],
    batches: Sequence[Photographs],
    limit: int,
    settings: Judging,
    tools: _Tools,
) -> Card:
    seen: list[Seen] = []
    placed: list[_Placed] = []
    curves: list[np.ndarray] = []
    seconds, done, drawn = 0.0, 0, 0
    for batch in _first(batches, limit):
        chosen = jnp.asarray(batch.detected | batch.strongest)
        if not done:
            jax.block_until_ready(maps_of(batch.images, chosen))  # compiles
        begin = time.process_time()
        raw, masks = jax.block_until_ready(maps_of(batch.images, chosen))
        seconds += time.process_time() - begin
        shown = tools.through(batch.images, masks, jnp.asarray(batch.detected))
        clean, kept, removed = (np.asarray(part) for part in shown)
        seen.append(faithfulness.rows_of(clean, kept, removed, batch.detected))
        placed += _places(np.asarray(raw), np.asarray(masks), batch, settings)
        if done < settings.curves:
            curves += _curves(np.asarray(raw), batch, tools)
            drawn += len(batch.labels)
        done += len(batch.labels)
    rows = faithfulness.together(seen)
    numbers = {
        **faithfulness.summary(rows, alone=settings.alone),
        **_place_numbers(placed),
        **_curve_numbers(curves),
    }
    return Card(name, done, drawn, MappingProxyType(numbers), faithfulness.drop(rows), seconds)


class _Placed(NamedTuple):
    loc: float
    proportion: float
    box: float
    counts: np.ndarray
    precision: float
    f1: float


def _places(
    raw: Float[np.ndarray, "b S S c"],
    masks: Float[np.ndarray, "b S S c"],
    batch: Photographs,
    settings: Judging,
) -> list[_Placed]:
    if batch.masks is None:
        return []
    found = []
    for image, label in np.argwhere(batch.detected & batch.labels):
        truth = batch.masks[image]
        region = truth == to_mask_index(np.array([label]))[0]
        if not region.any():
            continue
        scores = masks[image, ..., label]
        binary = np.where(truth == IGNORE, IGNORE, region).astype(np.uint8)
        counts = localisation.foreground_counts(raw[image, ..., label], binary)
        found.append(
            _Placed(
                loc=localisation.loc(scores, region, settings.threshold),
                proportion=localisation.proportion(scores, region),
                box=localisation.hits_a_box(scores, localisation.regions_boxes(region)),
                counts=counts,
                precision=localisation.foreground_precision(raw[image, ..., label], binary),
                f1=localisation.foreground_f1(counts),
            )
        )
    return found


def _place_numbers(placed: Sequence[_Placed]) -> dict[str, float]:
    if not placed:
        return dict.fromkeys(PLACED, float("nan"))
    counts = np.sum([place.counts for place in placed], axis=0)
    means = {
        name: float(np.mean([getattr(place, name) for place in placed]))
        for name in ("loc", "proportion", "box", "precision", "f1")
    }
    accuracy, iou = metrics.pixel_accuracy(counts), metrics.mean_iou(counts)
    return {**means, "accuracy": float(accuracy), "iou": float(iou)}


def _curves(
    raw: Float[np.ndarray, "b S S c"], batch: Photographs, tools: _Tools
) -> list[Float[np.ndarray, "two s 2"]]:
    """Per photograph, for its strongest class: most and least relevant pixels removed first.

    The last axis holds whether the top class is still among the labels, and the probability of the
    explained class.
    """
    label = batch.strongest.argmax(axis=-1)
    maps = np.take_along_axis(raw, label[:, None, None, None], axis=-1)[..., 0]
    both = []
    for sign in (1, -1):
        logits = np.asarray(tools.exchange(batch.images, jnp.asarray(sign * maps)))
        top = logits.argmax(axis=-1)
        right = batch.labels[np.arange(len(label))[None], top]
        own = np.take_along_axis(logits, label[None, :, None], axis=-1)[..., 0]
        both.append(np.stack([right, 1 / (1 + np.exp(-own))], axis=-1))
    return list(np.stack(both).transpose(2, 0, 1, 3))


def _curve_numbers(curves: Sequence[np.ndarray]) -> dict[str, float]:
    if not curves:
        return dict.fromkeys((*CURVES, "accuracy_at_0"), float("nan"))
    (right_first, sure_first), (right_last, sure_last) = np.mean(curves, axis=0).swapaxes(1, 2)
    return {
        "positive": faithfulness.published_area(right_first[:10]),
        "negative": faithfulness.published_area(right_last[:10]),
        "deletion": faithfulness.mean_area(sure_first),
        # The least relevant pixels taken away first, read backwards: the most relevant come first.
        "insertion": faithfulness.mean_area(sure_last),
        "accuracy_at_0": float(right_first[0]),
    }


def _batches(
    subject: Subject, source: Source, ids: Sequence[str], settings: Judging
) -> Iterator[Photographs]:
    logits = jax.jit(lambda weights, x: subject.logits(weights, _everywhere(x))(x))
    for start in range(0, len(ids), settings.batch_size):
        part = ids[start : start + settings.batch_size]
        side = (settings.side, settings.side)
        pixels = jnp.asarray(np.stack([_stretched(source.image(id), side) for id in part]))
        found = np.asarray(logits(subject.weights, pixels))
        truths = [source.mask(id) for id in part]
        masks = [_nearest(truth, side) for truth in truths if truth is not None]
        yield Photographs(
            images=pixels,
            labels=np.stack([source.labels(id) for id in part]),
            masks=np.stack(masks) if len(masks) == len(part) else None,
            detected=found > 0,
            strongest=found == found.max(axis=-1, keepdims=True),
        )


def _first(batches: Sequence[Photographs], limit: int) -> Iterator[Photographs]:
    """The batches of the first ``limit`` photographs."""
    for batch in batches:
        if limit <= 0:
            return
        yield Photographs(
            images=batch.images[:limit],
            labels=batch.labels[:limit],
            masks=None if batch.masks is None else batch.masks[:limit],
            detected=batch.detected[:limit],
            strongest=batch.strongest[:limit],
        )
        limit -= len(batch.labels)


def _everywhere(pixels: Array) -> Bool[Array, "b H W"]:
    return jnp.ones(pixels.shape[:3], bool)


def _stretched(photo: UInt8[np.ndarray, "H W 3"], size: tuple[int, int]) -> np.ndarray:
    picture = Image.fromarray(photo).resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return np.asarray(picture, np.float32) / np.float32(255)


def _nearest(mask: UInt8[np.ndarray, "H W"], size: tuple[int, int]) -> np.ndarray:
    picture = Image.fromarray(mask).resize((size[1], size[0]), Image.Resampling.NEAREST)
    return np.asarray(picture)
