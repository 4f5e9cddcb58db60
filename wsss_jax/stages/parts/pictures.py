"""``wsss explain``: a split to a store of score maps, or photographs by hand to pictures of them.

Photographs are explained once, at one size, without mirror images: what is shown is the
method's map of this very image. Nothing is read from a data set, so the classes to explain are
named, or those that the network finds.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Array, Bool, Float, UInt8
from PIL import Image

from wsss_jax.config import lookup
from wsss_jax.data.files import write_atomic
from wsss_jax.data.photographs import read_image
from wsss_jax.datasets.table import open_dataset
from wsss_jax.errors import UserError
from wsss_jax.explain import multiscale
from wsss_jax.ops.resize import grid_size, resize
from wsss_jax.report import Picture, Report, write_page
from wsss_jax.report.overlays import Row, sheet
from wsss_jax.run.progress import meter
from wsss_jax.stages import explain as explaining
from wsss_jax.stages.explain import Explanation
from wsss_jax.stages.parts.channels import Asked, show_channels
from wsss_jax.stages.parts.subject import Method, Subject, at_layer, subject_of
from wsss_jax.train.state import Weights
from wsss_jax.types import Size

MULTIPLE = 32
"""Canvases are whole multiples of the coarsest stride of any backbone."""

CAPTION = "Each map is rectified and divided by its largest value."

Positional = tyro.conf.Positional


@dataclass(frozen=True)
class Showing:
    """What is shown of photographs.

    Attributes:
        methods: names of explanation methods that the network has.
        labels: classes to explain; none for those that the network finds.
        layers: named layers where each method takes its features; none for the last features.
        side: longer side, in pixels, that larger photographs are shrunk to.
        columns: cells in a line of the sheet; 0 puts each class in one line.
    """

    methods: tuple[str, ...] = ("cam",)
    labels: tuple[str, ...] = ()
    layers: tuple[str, ...] = ()
    side: int = 384
    columns: int = 6


class Explained(NamedTuple):
    """One photograph, its classes with their probabilities, and scores (h,w,k) by method."""

    id: str
    photo: np.ndarray
    classes: tuple[str, ...]
    probabilities: np.ndarray
    maps: Mapping[str, np.ndarray]


def command(
    run: Positional[Path],
    out: Path,
    data: Path | None = None,
    image: tuple[Path, ...] = (),
    method: tuple[str, ...] = ("cam",),
    labels: tuple[str, ...] = (),
    layer: tuple[str, ...] = (),
    channels: tuple[int, ...] = (),
    side: int = Showing.side,
    layout: str = "auto",
    split: str = "all",
    lists: Path | None = None,
    scales: tuple[float, ...] = Explanation.scales,
    flip: bool = Explanation.flip,
    batch_size: int = Explanation.batch_size,
) -> None:
    """Turn a trained run into score maps of a data set, or show photographs next to their maps.

    Args:
        run: folder of a finished training run.
        out: store of score maps to write; with --image, folder for explained.png and .html, and
            with --channels for channels.png.
        data: folder of a data set with labels: write its score maps.
        image: photographs: show them next to their maps instead.
        method: how maps are made, one of EXPLAINERS or, for transformers with a class token, one
            of those that read its attention, such as rollout. With --image several may be given.
        labels: with --image: classes to explain. Not given: those that the network finds.
        layer: with --image: named layers where methods take their features, such as block6. Not
            given: the last features.
        channels: numbers of channels: show what they respond to instead, an image made from noise
            and the patches of the data set where they are largest.
        side: with --image: larger photographs are shrunk to this longer side, in pixels.
        layout: of --data, one of DATASETS; "auto" tells them apart.
        split: of --data: one of its lists (train, val …), or "all".
        lists: folder of id lists, if they lie elsewhere.
        scales: with --data: scales of the photographs; maps are summed over them.
        flip: with --data: add the mirror image at each scale.
        batch_size: with --data: photographs per call.
    """
    if channels and data is None:
        raise UserError("channels are shown over a data set; give --data")
    if (data is None) == (not image):
        raise UserError("give either --data, to write a store, or --image, to show photographs")
    if not method:
        raise UserError("no method; name at least one after --method")
    if data is None:
        showing = Showing(method, labels, layer, side)
        for path in show(run, image, out, showing):
            print(path)
        return
    source = open_dataset(data, split=split, layout=layout, lists=lists)
    if channels:
        asked = _asked(channels, labels, layer)
        print(show_channels(subject_of(run), source, out, asked, batch_size))
        return
    _check_one(method, labels, layer)
    settings = Explanation(next(iter(method)), scales, flip, batch_size)
    print(explaining.explain(run, source, out, settings, ids=source.ids).folder)


def _check_one(method: Sequence[str], labels: Sequence[str], layer: Sequence[str]) -> None:
    if len(method) > 1 or labels or layer:
        raise UserError(
            "a store holds one method, of the last features, and the data set's labels; give one "
            "--method, and --labels and --layer with --image alone"
        )


def _asked(channels: tuple[int, ...], labels: Sequence[str], layer: Sequence[str]) -> Asked:
    if labels or len(layer) > 1:
        raise UserError("channels are of one layer and of no labels; give one --layer at most")
    return Asked(channels, next(iter(layer), ""))


def show(
    run: Path, photographs: Sequence[Path], folder: Path, showing: Showing
) -> tuple[Path, Path]:
    """Explain photographs by a trained run: a sheet and a page in ``folder``; returns their paths.

    Raises ValueError for unknown methods or classes, BadFileError for what cannot be read.
    """
    subject = subject_of(run)
    known = {
        name: lookup(subject.methods, name, "explanation method of this network")
        for name in showing.methods
    }
    deep = {
        f"{name} at {layer}": at_layer(subject, name, layer)
        for name in known
        for layer in showing.layers
    }
    found = explained(subject, photographs, showing, deep or known)
    return write(folder, found, subject, title=f"{run.name} explained", columns=showing.columns)


def explained(
    subject: Subject,
    photographs: Sequence[Path],
    showing: Showing,
    methods: Mapping[str, Method],
) -> list[Explained]:
    """The maps of photographs by all ``methods``, each compiled once."""
    wanted = subject.classes.multi_hot(showing.labels)
    photos = [_shrunk(read_image(path), showing.side) for path in photographs]
    canvas = _canvas(photos)
    seen = [_placed(photo, canvas) for photo in photos]
    logits = jax.jit(lambda weights, pixels, inside: subject.logits(weights, inside)(pixels))
    chances = [_sigmoid(np.asarray(logits(subject.weights, *view))[0]) for view in seen]
    labels = [wanted if wanted.any() else _found(chance) for chance in chances]
    maps: list[dict[str, np.ndarray]] = [{} for _ in photos]
    with meter("explain", len(methods) * len(photos), "maps") as bar:
        for name, method in methods.items():
            run = partial(jax.jit(_stepped(method, subject.lean)), subject.weights)
            for index, (pixels, inside) in enumerate(seen):
                raw, scores = run(pixels, inside, jnp.asarray(labels[index])[None])
                size = photos[index].shape[:2]
                maps[index][name] = _on_photograph(raw, scores, size, np.flatnonzero(labels[index]))
                bar.advance(1, name)
    return [
        Explained(
            id,
            photo,
            tuple(subject.classes.names[label] for label in np.flatnonzero(shown)),
            chance[shown],
            own,
        )
        for id, photo, shown, chance, own in zip(
            _ids(photographs), photos, labels, chances, maps, strict=True
        )
    ]


def write(
    folder: Path, found: Sequence[Explained], subject: Subject, *, title: str, columns: int
) -> tuple[Path, Path]:
    """The sheet (explained.png) and the page (explained.html) of explained photographs."""
    rows = [
        Row(
            one.photo,
            name,
            f"probability {one.probabilities[index]:.2f}",
            {method: scores[..., index] for method, scores in one.maps.items()},
        )
        for one in found
        for index, name in enumerate(one.classes)
    ]
    width = columns or len(rows[0].maps) + 1
    picture = folder / "explained.png"
    write_atomic(picture, sheet(rows, title=title, caption=CAPTION, columns=width))
    notes = [
        f"{one.id}: "
        + ", ".join(
            f"{name} {chance:.2f}"
            for name, chance in zip(one.classes, one.probabilities, strict=True)
        )
        for one in found
    ]
    report = Report(
        title=title,
        classes=subject.classes.mask_names(),
        notes=(CAPTION, f"Probabilities: {'; '.join(notes)}."),
    )
    pictures = (Picture(one.id, one.photo, one.classes, one.maps) for one in found)
    return picture, write_page(folder / "explained.html", report, pictures)


def _stepped(method: Method, lean: float) -> Callable[..., tuple[Array, Array]]:
    """Rectified maps as they come, and read on the photograph's grid."""

    def step(weights: Weights, pixels: Array, inside: Array, labels: Array) -> tuple[Array, Array]:
        maps = jax.nn.relu(method(weights, pixels, inside, labels))
        sizes = multiscale.sizes_of(inside)
        place = multiscale.Placement(sizes, sizes, pixels.shape[1] / maps.shape[1], lean)
        canvas = grid_size((pixels.shape[1], pixels.shape[2]))
        return maps, multiscale.on_grid(maps, place, canvas, mirrored=False)

    return step


def _on_photograph(
    raw: Array, scores: Array, size: Size, labels: np.ndarray
) -> Float[np.ndarray, "h w k"]:
    """Scores in [0, 1] of the labels, on the grid of a photograph."""
    grid = grid_size(size)
    if raw.shape[1] > scores.shape[1]:  # maps of pixels: a cell is the mean over its pixels
        whole = np.asarray(raw)[0, : size[0], : size[1]]
        cells = np.stack([resize(whole[..., label], grid) for label in labels], axis=-1)
    else:
        cells = np.asarray(scores)[0, : grid[0], : grid[1]][..., labels]
    peak = cells.max(axis=(0, 1), keepdims=True)
    return cells / np.where(peak > 0, peak, 1)


def _shrunk(photo: UInt8[np.ndarray, "H W 3"], side: int) -> UInt8[np.ndarray, "h w 3"]:
    if side < MULTIPLE:
        raise UserError(f"side is {side} pixels, wanted at least {MULTIPLE}")
    scale = min(1.0, side / max(photo.shape[:2]))
    if scale == 1:
        return photo
    height, width = (max(1, round(scale * n)) for n in photo.shape[:2])
    return np.asarray(Image.fromarray(photo).resize((width, height), Image.Resampling.BICUBIC))


def _canvas(photos: Sequence[np.ndarray]) -> Size:
    """The smallest canvas of whole multiples that holds every photograph."""
    height, width = (max(photo.shape[axis] for photo in photos) for axis in (0, 1))
    return -(-height // MULTIPLE) * MULTIPLE, -(-width // MULTIPLE) * MULTIPLE


def _placed(photo: UInt8[np.ndarray, "h w 3"], canvas: Size) -> tuple[Array, Array]:
    """Pixels (1,H,W,3) and which of them are real (1,H,W), at the top left of the canvas."""
    height, width = photo.shape[:2]
    pixels, inside = np.zeros((1, *canvas, 3), np.float32), np.zeros((1, *canvas), bool)
    pixels[0, :height, :width] = photo.astype(np.float32) / np.float32(255)
    inside[0, :height, :width] = True
    return jnp.asarray(pixels), jnp.asarray(inside)


def _found(chances: Float[np.ndarray, " c"]) -> Bool[np.ndarray, " c"]:
    """Classes above one half, or the likeliest where there is none."""
    found = chances > 0.5
    return found if found.any() else chances == chances.max()


def _ids(paths: Sequence[Path]) -> list[str]:
    """File names without suffix, numbered where they repeat."""
    stems = [path.stem for path in paths]
    return [
        stem if stems.count(stem) == 1 else f"{stem} ({stems[: index + 1].count(stem)})"
        for index, stem in enumerate(stems)
    ]


def _sigmoid(logits: Float[np.ndarray, " c"]) -> Float[np.ndarray, " c"]:
    return 1 / (1 + np.exp(-logits))
