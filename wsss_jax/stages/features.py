"""Frozen features as a store: the maps of one network, reduced to a few channels.

The combiner's linear probe tells classes by them over the whole data set, and its smoothing tells
which cells of an image are similar; each wants another kind of network (``wsss combine --features
FIRST … LAST``). The channels are principal components of the maps over a sample of images, largest
first; no label is read. They are kept in the store, so that images that come later have the same
channels.
"""

import io
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Array, Bool, Float

from wsss_jax.batches.batches import Group, inference_groups
from wsss_jax.batches.resized import Resized, long_side
from wsss_jax.config import Record, as_json, check_numbers, differences
from wsss_jax.data import components, stores
from wsss_jax.data.components import Components
from wsss_jax.data.files import write_atomic
from wsss_jax.data.provenance import recorded
from wsss_jax.data.stores import Store, open_store
from wsss_jax.datasets.selection import Data
from wsss_jax.datasets.table import Source
from wsss_jax.errors import UserError
from wsss_jax.models import build, recognise
from wsss_jax.ops import images
from wsss_jax.run.images import over_groups, settle
from wsss_jax.train import state as states
from wsss_jax.types import ScoreMaps


@dataclass(frozen=True)
class Features:
    """Which network looks, and what is kept of its maps.

    Attributes:
        weights: pretrained weights: a file, a name of `wsss weights list`, hub:owner/name, or auto.
        backbone: one of BACKBONES; "auto" takes the one that the weights are for.
        taps: which of its maps, counted from the finest (0); all have the same weight. Of a
            transformer, 1 to 4 are the tokens after each quarter of its blocks.
        channels: principal components to write, at most as many as the maps have.
        stride: pixels per cell of the store, counted at --size.
        sample: images that the components are computed from.
        batch_size: images per step.
        like: a store of features whose components are used again, so that a combiner or a head
            that learned from it can be applied to other photographs.
        size: long side in pixels to which photographs are resized for the network; both sides are
            rounded to whole cells of the coarsest map. None does not resize, and fills patches at
            the border with the mean colour.
        normalise: how images are normalised, if the file of the weights does not tell it: imagenet,
            half, clip or six numbers.
    """

    weights: Path
    backbone: str = "auto"
    taps: tuple[int, ...] = (1, 2, 3, 4)
    channels: int = 128
    stride: int = 8
    sample: int = 64
    batch_size: int = 4
    like: Path | None = None
    size: int | None = None
    normalise: str | None = None

    def __post_init__(self) -> None:
        check_numbers(self, "channels", "stride", "sample", "batch_size")
        if self.size is not None:
            check_numbers(self, "size")

    def name(self) -> str:
        """What tells it from the features of other networks, in the names of folders."""
        found = self.backbone if self.backbone != "auto" else str(self.weights)
        return re.sub(r"\W+", "_", Path(found).stem)


class Network(NamedTuple):
    """A network that looks: (pixels, inside) to maps (b,h,w,k), and pixels per cell of its last."""

    look: Callable[[np.ndarray, np.ndarray], Array]
    stride: int


def features(source: Source, folder: Path, settings: Features, *, ids: tuple[str, ...]) -> Store:
    """Compute the features of ``ids`` into a store at ``folder``; finished images are kept.

    Scores are standardised components, kind logit, one "class" per component. Images that cannot
    be read are skipped and listed. Raises UserError for weights that do not fit, and for
    a store ``like`` of another network or other channels.
    """
    file, backbone, normalise = recognise.settled_weights(
        settings.weights, settings.backbone, settings.normalise
    )
    settings = replace(settings, weights=file, backbone=backbone, normalise=normalise)
    made_by = {**_made_by(settings), **recorded(recognise.provenance(file))}
    if (folder / "index.json").is_file() and (folder / components.KEPT).is_file():
        target = open_store(folder)
        if not differences(target.made_by, made_by) and not target.missing(ids):
            return target
    network = _pretrained(settings)
    source, original = _at_size(source, network, settings), source
    channels = _channels(network, source, ids, settings)
    names = tuple(f"component_{i}" for i in range(channels))
    target = stores.create(folder, holds="scores", classes=names, kind="logit", made_by=made_by)
    missing = target.missing(ids)
    if not missing:
        return target
    centre, basis = _components(network, source, target, settings, ids)
    skipped: dict[str, str] = {}
    groups = _groups(source, missing, network, settings, skipped.__setitem__)

    def write(group: Group) -> int:
        maps = np.asarray(_projected(network.look(*_inputs(group)), centre, basis))
        for row, id in enumerate(group.ids):
            height, width = (-(-int(n) // settings.stride) for n in group.sizes[row])
            scores = np.ascontiguousarray(maps[row, :height, :width])
            number = np.arange(channels, dtype=np.int32)
            peak = scores.max(axis=(0, 1))
            target.put_scores(id, ScoreMaps(scores, number, original.size(id), peak, "logit"))
        return len(group.ids)

    settle(target, over_groups(f"features {folder.name}", groups, len(missing), write, skipped))
    return target


def command(
    settings: Annotated[Features, tyro.conf.arg(name="")],
    data: Annotated[Data, tyro.conf.arg(name="")],
    out: Path,
) -> None:
    """Features of a frozen network as a store, for the combiner's linear probe or its smoothing.

    Args:
        settings: the network, and what is kept.
        data: the data set.
        out: store to write; the same command resumes a stopped one.
    """
    source = data.open()
    print(features(source, out, settings, ids=source.ids).folder)


def _pretrained(settings: Features) -> Network:
    module = build.classifier(
        settings.backbone,
        1,
        key=jax.random.key(0),
        output_stride=None,
        pretrained=settings.weights,
        normalise=settings.normalise,
    )
    maps = len(module.backbone.strides)
    if not all(-maps <= tap < maps for tap in settings.taps):
        wanted = f"{settings.backbone} has {maps} maps, 0 to {maps - 1}"
        raise UserError(f"taps {settings.taps}: {wanted}")
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

    return Network(look, build.stride(settings.backbone))


def _at_size(source: Source, network: Network, settings: Features) -> Source:
    """The photographs as the network gets them."""
    wanted = settings.size
    if wanted is None:
        return source
    return Resized(source, partial(long_side, wanted=wanted, multiple=network.stride))


def _groups(
    source: Source,
    ids: Sequence[str],
    network: Network,
    settings: Features,
    skip: Callable[[str, str], None],
) -> Iterator[Group]:
    """Batches on canvases that hold whole cells of the network and of what is kept."""
    whole = math.lcm(network.stride, settings.stride)
    return inference_groups(
        source,
        ids,
        scales=(1.0,),
        batch_size=settings.batch_size,
        multiple=32 if 32 % whole == 0 else whole,
        skip=skip,
    )


def _channels(network: Network, source: Source, ids: Sequence[str], settings: Features) -> int:
    """How many are kept: those asked for, or as many as the network's maps have."""
    for group in _groups(source, ids, network, settings, _ignore):
        return min(settings.channels, jax.eval_shape(network.look, *_inputs(group)).shape[-1])
    return settings.channels


def _standard(maps: Float[Array, "b h w k"]) -> Float[Array, "b h w k"]:
    """Each cell's channels with mean square 1 / k, so that every tap weighs the same."""
    power = jnp.square(maps).sum(axis=-1, keepdims=True)
    return maps / jnp.sqrt(power + 1e-6)


def _made_by(settings: Features) -> Record:
    names = {"weights": settings.weights, "like": settings.like}
    by_name = {key: None if path is None else path.name for key, path in names.items()}
    return {"stage": "features", **as_json(settings), **by_name}


@jax.jit
def _projected(
    maps: Float[Array, "b h w k"], centre: Float[Array, " k"], basis: Float[Array, "k c"]
) -> Float[Array, "b h w c"]:
    return (maps - centre[None, None, None]) @ basis


def _components(
    network: Network, source: Source, target: Store, settings: Features, ids: tuple[str, ...]
) -> Components:
    """Those that the store holds, of ``settings.like``, or new ones, which it then holds."""
    path = target.folder / components.KEPT
    if path.is_file():
        return components.read(path)
    if settings.like is not None:
        found = _components_of(open_store(settings.like), settings)
    else:
        found = _computed(network, source, ids[:: max(len(ids) // settings.sample, 1)], settings)
    buffer = io.BytesIO()
    np.savez(buffer, centre=found.centre, basis=found.basis)
    write_atomic(path, buffer.getvalue())
    return found


def _components_of(other: Store, settings: Features) -> Components:
    """The components of another store. UserError where its features mean something else."""
    wanted = _made_by(settings)
    for name in ("weights", "backbone", "taps", "channels", "stride", "size"):
        if other.made_by.get(name) != wanted.get(name):
            raise UserError(
                f"{other.folder}: {name} is {other.made_by.get(name)!r}, here "
                f"{wanted.get(name)!r}; "
                "features can be compared only if that is the same"
            )
    if not components.digest(other):
        raise UserError(
            f"{other.folder} does not keep its components; make it again in another folder"
        )
    return components.read(other.folder / components.KEPT)


def _computed(
    network: Network, source: Source, ids: tuple[str, ...], settings: Features
) -> Components:
    """The mean of the maps, and the directions of largest variance scaled to variance 1."""
    total = squares = np.zeros(())
    count = 0
    for group in _groups(source, ids, network, settings, _ignore):
        maps = np.asarray(network.look(*_inputs(group)))
        for row in range(len(group.ids)):
            height, width = (int(n) // settings.stride for n in group.sizes[row])
            cells = maps[row, :height, :width].reshape(-1, maps.shape[-1])
            # Sums over one image lose nothing in single precision, and take half the time.
            total = total + cells.sum(0, dtype=np.float64)
            squares = squares + (cells.T @ cells).astype(np.float64)
            count += len(cells)
    mean = total / max(count, 1)
    values, vectors = np.linalg.eigh(squares / max(count, 1) - np.outer(mean, mean))
    top = slice(-1, -settings.channels - 1, -1)
    basis = vectors[:, top] / np.sqrt(np.maximum(values[top], 1e-12))
    return Components(mean.astype(np.float32), basis.astype(np.float32))


def _inputs(group: Group) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(group.scaled[0].images), np.asarray(group.scaled[0].inside)


def _ignore(id: str, reason: str) -> None:
    """Images that cannot be read are reported when their own turn comes."""
