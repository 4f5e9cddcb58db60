"""Samples to batches of few shapes: endless training batches, and groups of images to explain.

Every batch shape costs a compilation, and photographs come in a hundred sizes, so images lie on a
short list of canvases; ``Batch.inside`` tells the networks which pixels are real. One bad image is
skipped by id and counted, never silently. Not here: reading (``datasets``), augmenting
(``augment``), and placing arrays on devices.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, TypeVar, cast

import grain
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image

from wsss_jax.batches.augment import Augmentation, augment
from wsss_jax.batches.canvases import (
    canvas_for,
    choose_canvases,
    scaled_canvas,
    scaled_size,
    scales_on,
)
from wsss_jax.config import Record, as_json, fingerprint
from wsss_jax.data.photographs import fit_mask, working_size
from wsss_jax.datasets import boxes as boxes_of
from wsss_jax.datasets.table import Source
from wsss_jax.errors import BadFileError, UserError
from wsss_jax.losses.long_tail import sampling_shares
from wsss_jax.types import Batch, Leaf, Sample, Size

T = TypeVar("T")
MaskReader = Callable[[str], UInt8[np.ndarray, "H W"]]
LARGE = 2**19
"""Pixels of canvases from which on groups have fewer images than ``batch_size``: half as many
pixels as this times ``batch_size``, those of photographs of 512×512."""

Reported = Callable[[str, str], None]
"""Told the id of a skipped image and the reason."""


class TrainingBatches:
    """An endless iterator of training batches, made by ``training_batches``.

    steps_per_epoch: batches until every image was drawn once, the incomplete last one dropped.
    """

    def __init__(self, dataset: grain.IterDataset, steps_per_epoch: int, *, draw: "_Draw") -> None:
        self.steps_per_epoch = steps_per_epoch
        self._iterator = iter(dataset)
        self._draw = draw

    def __iter__(self) -> "TrainingBatches":
        return self

    def __next__(self) -> Batch:
        return next(self._iterator)

    @property
    def skipped(self) -> dict[str, str]:
        """Reason by id of every image left out until now: damaged, missing, or without labels."""
        with self._draw.lock:
            return dict(self._draw.skipped)

    def get_state(self) -> Record:
        """Where the iterator stands, as JSON values."""
        return {"order": self._draw.order, "grain": self._iterator.get_state()}

    def set_state(self, state: Record) -> None:
        """Go on exactly from ``get_state``. ValueError for the state of other batches."""
        if state.get("order") != self._draw.order:
            raise UserError(
                "this state belongs to batches of other images, settings, seed or batch "
                "size; resume with the settings of the first run or start afresh"
            )
        self._iterator.set_state(state["grain"])


def training_batches(
    source: Source,
    settings: Augmentation,
    *,
    seed: int,
    batch_size: int,
    shard: tuple[int, int] = (0, 1),
    start: Record | None = None,
    masks: MaskReader | None = None,
    boxes: boxes_of.Reader | None = None,
    balanced: bool = False,
    cache_bytes: int = 0,
    read_threads: int = 2,
) -> TrainingBatches:
    """Endless shuffled, augmented batches: a pure function of source, settings and seed.

    batch_size: images per step over all hosts. shard: (index, count) of this host, which gets the
    index-th of count equal parts of each step, so that all hosts together see what one alone would
    see. start: a state to go on from. masks: where pseudo-masks come from; the source's own truth
    is never read. boxes: of objects, the largest of each class. balanced: images are drawn by
    ``long_tail.sampling_shares`` of their labels, rare ones several times in an epoch and others
    not at all. cache_bytes: memory in which decoded images are kept. read_threads: threads that
    decode ahead.

    An image that cannot be read is replaced by the next readable one. Raises ValueError where there
    are fewer labelled images than batch_size.
    """
    index, count = shard
    if not 0 <= index < count or batch_size < 1 or batch_size % count:
        raise UserError(
            f"shard {shard} of batches of {batch_size}: wanted 0 <= index < count, and a batch "
            "size that count divides"
        )
    labels, skipped = _labelled(source)
    steps = len(labels) // batch_size
    if not steps:
        raise UserError(
            f"{source.name}: {len(labels)} of {len(source.ids)} images have labels, not enough "
            f"for one batch of {batch_size}; take a smaller batch size"
        )
    ids = tuple(labels)
    order = fingerprint([ids, as_json(settings), seed, batch_size, *(["balanced"] * balanced)])
    shares = sampling_shares(np.stack([*labels.values()])) if balanced else None
    slots = None if boxes is None else partial(_largest, boxes, source.classes.names)
    read = _cached(source.image, cache_bytes)
    draw = _Draw(read, labels, masks, settings, ids, skipped, order, shares, slots)
    dataset = grain.MapDataset.range(len(ids)).seed(seed).shuffle()[: steps * batch_size].repeat()
    parts = dataset.random_map(draw).batch(batch_size // count, batch_fn=_training_batch)
    ahead = grain.ReadOptions(num_threads=read_threads, prefetch_buffer_size=2 * read_threads)
    batches = TrainingBatches(parts[index::count].to_iter_dataset(ahead), steps, draw=draw)
    if start is not None:
        batches.set_state(start)
    return batches


class Group(NamedTuple):
    """Images of one canvas at every scale.

    ids: the b' <= b real images. sizes: (height, width) that the photographs come with, at scale 1.
    full: (height, width) of the photographs themselves, that of their masks. labels: their
    classes, none on fill-up rows. scaled: one batch per scale, images at the top left; rows from b'
    on are copies of the first with ``real`` False. scales: those of ``scaled``.
    """

    ids: tuple[str, ...]
    sizes: Int[np.ndarray, "b 2"]
    full: Int[np.ndarray, "b 2"]
    labels: Bool[np.ndarray, "b c"]
    scaled: tuple[Batch, ...]
    scales: tuple[float, ...]


def inference_groups(
    source: Source,
    ids: Sequence[str],
    *,
    scales: Sequence[float],
    batch_size: int,
    canvases: Sequence[Size] | None = None,
    multiple: int = 32,
    skip: Reported,
) -> Iterator[Group]:
    """All images of ``ids`` in groups of ``batch_size``, each at all ``scales``; one group ahead.

    There are at most canvases × scales shapes; large canvases have smaller scales (``scales_on``).
    canvases: sizes at scale 1, by default three that fit the working sizes of ``ids``; on those
    above LARGE pixels groups are smaller (``rows_for``).
    multiple: canvases are rounded up to it at each scale, in pixels. skip: told the id and the
    reason of each image that cannot be read. Raises ValueError for scales that are not positive.
    """
    if batch_size < 1 or not scales or min(scales) <= 0:
        raise UserError(f"batch size {batch_size}, scales {tuple(scales)}: wanted positive ones")
    plan = _Plan(tuple(scales), batch_size, multiple)
    for item in _ahead(_grouped(source, ids, canvases, plan)):
        if isinstance(item, _Skip):
            skip(item.id, item.reason)
        else:
            yield item


def rows_for(canvas: Size, batch_size: int) -> int:
    """Images per batch on a canvas: fewer of LARGE ones, so that memory stays what it was."""
    area = canvas[0] * canvas[1]
    return batch_size if area <= LARGE else max(1, batch_size * LARGE // (2 * area))


class _Skip(NamedTuple):
    id: str
    reason: str


class _Plan(NamedTuple):
    scales: tuple[float, ...]
    batch_size: int
    multiple: int


class _Drawn(NamedTuple):
    image: UInt8[np.ndarray, "h w 3"]
    inside: Bool[np.ndarray, "h w"]
    labels: Bool[np.ndarray, " c"]
    mask: UInt8[np.ndarray, "h w"] | None
    boxes: Float[np.ndarray, "c 4"] | None


@dataclass(frozen=True)
class _Draw:
    """The sample of one position, augmented; called by grain, possibly from several threads."""

    image: Callable[[str], UInt8[np.ndarray, "H W 3"]]
    labels: dict[str, Bool[np.ndarray, " c"]]
    masks: MaskReader | None
    settings: Augmentation
    ids: tuple[str, ...]
    skipped: dict[str, str]
    order: str
    shares: Float[np.ndarray, " n"] | None
    boxes: Callable[[str], Float[np.ndarray, "c 4"]] | None = None
    lock: Any = field(default_factory=threading.Lock)

    def __call__(self, position: int, rng: np.random.Generator) -> _Drawn:
        if self.shares is not None:
            position = int(rng.choice(len(self.ids), p=self.shares))
        for step in range(len(self.ids)):
            id = self.ids[(position + step) % len(self.ids)]
            if id in self.skipped:
                continue
            try:
                sample = self._read(id)
            except BadFileError as problem:
                with self.lock:
                    self.skipped[id] = str(problem)
                continue
            view = augment(sample, self.settings, rng)
            return _Drawn(view.image, view.inside, sample.labels, view.mask, view.boxes)
        raise BadFileError(f"none of {len(self.ids)} images can be read; run `wsss check` on them")

    def _read(self, id: str) -> Sample:
        image = self.image(id)
        mask = None if self.masks is None else self.masks(id)
        if mask is not None and working_size(mask.shape) == image.shape[:2]:
            mask = fit_mask(mask, image.shape[:2])
        if mask is not None and mask.shape != image.shape[:2]:
            raise BadFileError(f"{id}: mask {mask.shape} for an image of {image.shape[:2]}")
        boxes = None if self.boxes is None else self.boxes(id)
        return Sample(id, image, self.labels[id], mask, boxes)


def _largest(read: boxes_of.Reader, classes: Sequence[str], id: str) -> Float[np.ndarray, "c 4"]:
    return boxes_of.largest(read(id), classes)


def _labelled(source: Source) -> tuple[dict[str, Bool[np.ndarray, " c"]], dict[str, str]]:
    """Labels of the images that have any, in the source's order, and why the others do not.

    That an image shows none of the classes is a label, too.
    """
    labels, skipped = {}, {}
    for id in source.ids:
        try:
            labels[id] = source.labels(id)
        except BadFileError as problem:
            skipped[id] = str(problem)
    return labels, skipped


def _cached(read: Callable[[str], np.ndarray], limit: int) -> Callable[[str], np.ndarray]:
    """The same reader, which keeps what it read until ``limit`` bytes are full."""
    kept: dict[str, np.ndarray] = {}
    lock = threading.Lock()
    used = 0

    def image(id: str) -> np.ndarray:
        nonlocal used
        if id in kept:
            return kept[id]
        pixels = read(id)
        with lock:
            if id not in kept and used + pixels.nbytes <= limit:
                kept[id] = pixels
                used += pixels.nbytes
        return pixels

    return image if limit else read


def _training_batch(drawn: Sequence[_Drawn]) -> Batch:
    masks = [d.mask for d in drawn if d.mask is not None]
    boxes = [d.boxes for d in drawn if d.boxes is not None]
    return _on_host(
        _unit(np.stack([d.image for d in drawn])),
        np.stack([d.labels for d in drawn]),
        np.stack([d.inside for d in drawn]),
        np.ones(len(drawn), bool),
        np.stack(masks).astype(np.int32) if masks else None,
        np.stack(boxes) if boxes else None,
    )


def _on_host(*arrays: np.ndarray | None) -> Batch:
    """A batch of NumPy arrays, in the order of its fields; whoever computes moves it to devices."""
    return Batch(*cast("tuple[Leaf, ...]", arrays))


def _unit(pixels: UInt8[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    return pixels.astype(np.float32) * np.float32(1 / 255)


def _grouped(
    source: Source, ids: Sequence[str], canvases: Sequence[Size] | None, plan: _Plan
) -> Iterator[Group | _Skip]:
    full: dict[str, Size] = {}
    for id in ids:
        try:
            full[id] = source.size(id)
        except BadFileError as problem:
            yield _Skip(id, str(problem))
    sizes = {id: working_size(size) for id, size in full.items()}
    if canvases is None:
        canvases = choose_canvases(sizes.values(), multiple=plan.multiple) if sizes else ()
    canvas_of = {id: canvas_for(size, canvases) for id, size in sizes.items()}
    for canvas in dict.fromkeys(canvas_of.values()):
        waiting: list[Sample] = []
        sized = plan._replace(
            scales=scales_on(canvas, plan.scales), batch_size=rows_for(canvas, plan.batch_size)
        )
        for id in (id for id in sizes if canvas_of[id] == canvas):
            try:
                waiting.append(_sample(source, id, sizes[id]))
            except BadFileError as problem:
                yield _Skip(id, str(problem))
            if len(waiting) == sized.batch_size:
                yield _group(waiting, full, canvas, sized)
                waiting = []
        if waiting:
            yield _group(waiting, full, canvas, sized)


def _sample(source: Source, id: str, size: Size) -> Sample:
    image = source.image(id)
    if image.shape[:2] != size:
        raise BadFileError(f"{id}: {image.shape[:2]} pixels, its header tells {size}")
    return Sample(id, image, source.labels(id))


def _group(samples: list[Sample], full: Mapping[str, Size], canvas: Size, plan: _Plan) -> Group:
    count = len(samples)
    rows = [*samples, *[samples[0]] * (plan.batch_size - count)]
    labels = np.stack([row.labels for row in rows])
    labels[count:] = False
    scaled = tuple(
        _scaled(samples, labels, scale, scaled_canvas(canvas, scale, plan.multiple))
        for scale in plan.scales
    )
    sizes = np.array([row.image.shape[:2] for row in rows], np.int32)
    whole = np.array([full[row.id] for row in rows], np.int32)
    ids = tuple(sample.id for sample in samples)
    return Group(ids, sizes, whole, labels, scaled, plan.scales)


def _scaled(
    samples: list[Sample], labels: Bool[np.ndarray, "b c"], scale: float, canvas: Size
) -> Batch:
    images = np.zeros((len(labels), *canvas, 3), np.float32)
    inside = np.zeros((len(labels), *canvas), bool)
    for row, sample in enumerate(samples):
        height, width = scaled_size(sample.image.shape[:2], scale)
        picture = Image.fromarray(sample.image)
        if (height, width) != sample.image.shape[:2]:
            picture = picture.resize((width, height), Image.Resampling.BICUBIC)
        images[row, :height, :width] = _unit(np.asarray(picture))
        inside[row, :height, :width] = True
    count = len(samples)
    images[count:], inside[count:] = images[0], inside[0]
    return _on_host(images, labels, inside, np.arange(len(labels)) < count)


def _ahead(items: Iterable[T]) -> Iterator[T]:
    """The same items, the next one made in a thread while the last one is used."""
    source = iter(items)
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, source, None)
        while (item := coming.result()) is not None:
            coming = pool.submit(next, source, None)
            yield item
