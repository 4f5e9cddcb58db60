"""Frozen features as a store: what pretrained networks see, reduced to a few channels of each.

They are evidence that no system's scores hold: a linear probe tells the classes by them over the
whole data set (``combiner.probe``), and a combiner fits the first of them to the consensus of an
image (``combiner.consensus.ridge``) and sees where the two contradict. The channels are principal
components of each network's maps over a sample of images, largest first; no label is read. They are
kept in the store, so that images that come later, here or in another store, are seen alike.
Networks that were pretrained apart err apart, so two of them see more than one.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Array, Bool, Float

from wsss_jax.config import as_json, since
from wsss_jax.data import components, stores
from wsss_jax.data.batches import Group, inference_groups
from wsss_jax.data.components import Components
from wsss_jax.data.datasets import ALL, Source, open_dataset
from wsss_jax.data.files import write_atomic
from wsss_jax.data.stores import Store, open_store
from wsss_jax.errors import UserError
from wsss_jax.models import build
from wsss_jax.ops import images
from wsss_jax.run.images import Tally, settle
from wsss_jax.run.progress import meter
from wsss_jax.train import state as states
from wsss_jax.train.loop import Interrupted, stop_signals
from wsss_jax.types import ScoreMaps


@dataclass(frozen=True)
class Features:
    """Which networks look, and what is kept of them.

    Attributes:
        weights: their pretrained weights, a file for each.
        backbone: their names in BACKBONES; one name alone is that of all.
        taps: which of their maps, counted from the finest (0); each counts alike.
        channels: principal components that are kept of each network; the store has the first of
            all, then the second of all.
        stride: pixels per cell of what is kept.
        sample: images that the components are computed from.
        batch_size: images per step.
        like: a store of features whose components are taken, so that what has learned from it can
            be asked about other photographs; None computes them from ``sample`` images.
    """

    weights: tuple[Path, ...]
    backbone: tuple[str, ...] = ("mobilenet_v2",)
    taps: tuple[int, ...] = (1, 2, 3, 4)
    channels: int = 128
    stride: int = 8
    sample: int = 64
    batch_size: int = 4
    like: Path | None = since(None)  # noqa: RUF009

    def __post_init__(self) -> None:
        if not self.weights or len(self.backbone) not in (1, len(self.weights)):
            raise UserError(
                f"{len(self.weights)} files of weights and {len(self.backbone)} backbones; wanted "
                "at least one file, and a backbone for each or one for all"
            )

    def networks(self) -> tuple[tuple[str, Path], ...]:
        """The backbone and the weights of each."""
        names = self.backbone if len(self.backbone) > 1 else self.backbone * len(self.weights)
        return tuple(zip(names, self.weights, strict=True))


def features(source: Source, folder: Path, settings: Features, *, ids: tuple[str, ...]) -> Store:
    """Compute the features of ``ids`` into a store at ``folder``; finished images are kept.

    Scores are standardised components, kind logit, one "class" per component. Images that cannot
    be read are skipped and listed. Raises ValueError for weights that do not fit, and for a store
    ``like`` that was made by another network or kept other channels.
    """
    made_by = _made_by(settings)
    channels = settings.channels * len(settings.weights)
    names = tuple(f"component_{i}" for i in range(channels))
    target = stores.create(folder, holds="scores", classes=names, kind="logit", made_by=made_by)
    missing = target.missing(ids)
    if not missing:
        return target
    looks = [_network(*network, settings) for network in settings.networks()]
    centre, basis = _components(looks, source, target, settings, ids)
    skipped: dict[str, str] = {}
    done = 0
    with stop_signals() as stop, meter(f"features {folder.name}", len(missing)) as bar:
        groups = inference_groups(
            source, missing, scales=(1.0,), batch_size=settings.batch_size, skip=skipped.__setitem__
        )
        for group in groups:
            seen = [np.asarray(look(*_inputs(group))) for look in looks]
            maps = (np.concatenate(seen, axis=-1) - centre) @ basis
            for row, id in enumerate(group.ids):
                height, width = (-(-int(n) // settings.stride) for n in group.sizes[row])
                scores = maps[row, :height, :width].astype(np.float32)
                size = (int(group.full[row][0]), int(group.full[row][1]))
                peak = scores.max(axis=(0, 1))
                number = np.arange(channels, dtype=np.int32)
                target.put_scores(id, ScoreMaps(scores, number, size, peak, "logit"))
            done += len(group.ids)
            bar.advance(len(group.ids))
            if stop.is_set():
                raise Interrupted(128 + stop.number)
    settle(target, Tally(done, skipped))
    return target


def command(
    settings: Annotated[Features, tyro.conf.arg(name="")],
    data: Path,
    out: Path,
    layout: str = "auto",
    split: str = ALL,
) -> None:
    """Features of frozen pretrained networks as a store, for the learned combiner.

    Args:
        settings: the networks, and what is kept.
        data: folder of the data set.
        out: store to write; the same command goes on where it was stopped.
        layout: voc, folder, coco or tfds; "auto" tells them apart.
        split: name of a list of the data set, or "all".
    """
    source = open_dataset(data, split=split, layout=layout)
    print(features(source, out, settings, ids=source.ids).folder)


def _network(backbone: str, weights: Path, settings: Features) -> Any:
    module = build.classifier(
        backbone, 1, key=jax.random.key(0), output_stride=16, pretrained=weights
    )
    network = states.functional(module)

    @jax.jit
    def look(
        pixels: Float[Array, "b H W 3"], inside: Bool[Array, "b H W"]
    ) -> Float[Array, "b h w k"]:
        backbone = network.bind(network.params, network.stats).backbone
        mean, std = (jnp.asarray(v, pixels.dtype) for v in (backbone.mean, backbone.std))
        normal = (pixels - mean[None, None, None]) / std[None, None, None]
        taps = backbone(jnp.where(inside[..., None], normal, 0), inside=inside)
        grid = (pixels.shape[1] // settings.stride, pixels.shape[2] // settings.stride)
        return jnp.concatenate([_standard(images.resize(taps[i], grid)) for i in settings.taps], -1)

    return look


def _standard(maps: Float[Array, "b h w k"]) -> Float[Array, "b h w k"]:
    """Each cell's channels with mean square 1 / k, so that every tap weighs the same."""
    power = jnp.square(maps).sum(axis=-1, keepdims=True)
    return maps / jnp.sqrt(power + 1e-6)


def _made_by(settings: Features) -> dict[str, Any]:
    backbones, files = zip(*settings.networks(), strict=True)
    parts = {"weights": [path.name for path in files], "backbone": list(backbones)}
    if len(files) == 1:  # as stores of one network have always said it
        parts = {name: part[0] for name, part in parts.items()}
    return {"stage": "features", **as_json(settings), **parts}


def _components(
    looks: Sequence[Any], source: Source, target: Store, settings: Features, ids: tuple[str, ...]
) -> Components:
    """Those that the store keeps, of ``settings.like``, or new ones, which it then keeps."""
    path = target.folder / components.KEPT
    if path.is_file():
        return components.read(path)
    if settings.like is not None:
        found = _alike(open_store(settings.like), settings)
    else:
        found = _computed(looks, source, ids[:: max(len(ids) // settings.sample, 1)], settings)
    buffer = io.BytesIO()
    np.savez(buffer, **found._asdict())
    write_atomic(path, buffer.getvalue())
    return found


def _alike(other: Store, settings: Features) -> Components:
    """The components of another store. ValueError where its features mean something else."""
    wanted = _made_by(settings)
    for name in ("stage", "weights", "backbone", "taps", "channels", "stride"):
        if other.made_by.get(name) != wanted[name]:
            raise UserError(
                f"{other.folder}: {name} is {other.made_by.get(name)!r}, here {wanted[name]!r}; "
                "features are alike only if that is the same"
            )
    if not components.digest(other):
        raise UserError(
            f"{other.folder} does not keep its components (an earlier version made it); make it "
            "again in another folder"
        )
    return components.read(other.folder / components.KEPT)


def _computed(
    looks: Sequence[Any], source: Source, ids: tuple[str, ...], settings: Features
) -> Components:
    """Of each network the mean, and the directions of largest variance scaled to variance 1."""
    totals: list[Any] = [0.0 for _ in looks]
    squares: list[Any] = [0.0 for _ in looks]
    count = 0
    size = settings.batch_size
    groups = inference_groups(source, ids, scales=(1.0,), batch_size=size, skip=_ignore)
    for group in groups:
        inner = [[int(n) // settings.stride for n in whole] for whole in group.sizes]
        count += sum(height * width for height, width in inner[: len(group.ids)])
        for number, look in enumerate(looks):
            maps = np.asarray(look(*_inputs(group)), np.float64)
            for row in range(len(group.ids)):
                height, width = inner[row]
                cells = maps[row, :height, :width].reshape(-1, maps.shape[-1])
                totals[number] = totals[number] + cells.sum(0)
                squares[number] = squares[number] + cells.T @ cells
    many, channels = max(count, 1), settings.channels
    sums = zip(totals, squares, strict=True)
    return _side_by_side(
        [
            _principal(np.asarray(total / many), np.asarray(square / many), channels)
            for total, square in sums
        ]
    )


def _principal(
    mean: Float[np.ndarray, " k"], square: Float[np.ndarray, "k k"], channels: int
) -> Components:
    """Components of maps with this mean and this mean of products."""
    if len(mean) < channels:
        raise UserError(
            f"{channels} channels are to be kept, the network's maps have {len(mean)}; "
            "take fewer channels or more taps"
        )
    values, vectors = np.linalg.eigh(square - np.outer(mean, mean))
    top = slice(-1, -channels - 1, -1)
    basis = vectors[:, top] / np.sqrt(np.maximum(values[top], 1e-12))
    return Components(mean.astype(np.float32), basis.astype(np.float32))


def _side_by_side(parts: Sequence[Components]) -> Components:
    """Those of all networks' maps together; channels take turns."""
    rows = sum(len(part.centre) for part in parts)
    basis = np.zeros((rows, sum(part.basis.shape[1] for part in parts)), np.float32)
    start = 0
    for number, part in enumerate(parts):
        end = start + len(part.centre)
        basis[start:end, number :: len(parts)] = part.basis
        start = end
    return Components(np.concatenate([part.centre for part in parts]), basis)


def _inputs(group: Group) -> tuple[np.ndarray, np.ndarray]:
    return group.scaled[0].images, group.scaled[0].inside


def _ignore(id: str, reason: str) -> None:
    """Images that cannot be read are reported when their own turn comes."""
