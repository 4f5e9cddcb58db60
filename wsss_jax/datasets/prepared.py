"""Records that ``tfds_builder`` wrote, read through grain: a data set in a few large files.

Damage is found record by record: each has a checksum. Not here: writing them.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grain
import numpy as np
import tensorflow_datasets as tfds
from absl import flags
from jaxtyping import Bool, UInt8

from wsss_jax.data.classes import ClassList
from wsss_jax.data.files import decode_mask
from wsss_jax.data.photographs import decode_image
from wsss_jax.datasets.folders import ALL
from wsss_jax.errors import BadFileError, MissingFileError
from wsss_jax.types import Size


@dataclass(frozen=True)
class RecordSource:
    """A source of prepared records; one read of a record gives its photograph, labels and mask.

    records: grain datasets of encoded features, by split. positions: the split of each id, and
    where the id lies in it.
    """

    name: str
    classes: ClassList
    ids: tuple[str, ...]
    has_background: bool
    records: Mapping[str, grain.MapDataset]
    positions: Mapping[str, tuple[str, int]]

    def labels(self, id: str) -> Bool[np.ndarray, " c"]:
        """Which classes the image shows."""
        found = np.zeros(len(self.classes), bool)
        found[np.asarray(self._record(id)["labels"], np.int64)] = True
        return found

    def image(self, id: str) -> UInt8[np.ndarray, "H W 3"]:
        """The photograph as RGB, upright, at its working size."""
        return decode_image(self.encoded(id), id)

    def size(self, id: str) -> Size:
        """(height, width) of the photograph, as recorded."""
        height, width = self._record(id)["size"]
        return int(height), int(width)

    def mask(self, id: str) -> UInt8[np.ndarray, "H W"] | None:
        """Class indices, None where there is no truth."""
        record = self._record(id)
        return decode_mask(record["mask"], id) if record["has_mask"] else None

    def encoded(self, id: str) -> bytes:
        """The photograph as the bytes of its file."""
        return self._record(id)["image"]

    def _record(self, id: str) -> Mapping[str, Any]:
        if id not in self.positions:
            raise MissingFileError(f"{self.name}: no record of {id}")
        try:
            split, position = self.positions[id]
            record: Any = self.records[split][position]
        except (RuntimeError, ValueError, IndexError, OSError) as problem:
            raise BadFileError(f"{self.name}: the record of {id} is damaged ({problem})") from None
        if record["id"].decode() != id:
            raise BadFileError(f"{self.name}: the record of {id} holds {record['id'].decode()}")
        return record


def features(classes: ClassList) -> tfds.features.FeaturesDict:
    """What a record holds, as ``Wsss`` says."""
    return tfds.features.FeaturesDict(
        {
            "id": tfds.features.Text(),
            "image": tfds.features.Image(shape=(None, None, 3)),
            "labels": tfds.features.Sequence(tfds.features.ClassLabel(names=list(classes.names))),
            "mask": tfds.features.Image(shape=(None, None, 1), encoding_format="png"),
            "has_mask": tfds.features.Scalar(dtype=np.bool_),
            "size": tfds.features.Tensor(shape=(2,), dtype=np.int32),
        }
    )


def splits(root: Path) -> tuple[str, ...]:
    """Splits of prepared records. Raises BadFileError."""
    return tuple(sorted(_builder(root).info.splits))


def open_records(root: Path, split: str, *, ids: tuple[str, ...] | None = None) -> RecordSource:
    """A split of what ``write`` prepared; ids: these images instead of all. Raises BadFileError.

    root: the folder that ``write`` returned, or one above it that holds no other. split: or "all"
    for the images of all splits, each once.
    """
    parse_flags()
    builder = _builder(root)
    about = metadata(builder.info)
    known = tuple(sorted(builder.info.splits))
    if split not in (*known, ALL):
        raise BadFileError(f"{root}: no split {split!r} (there are: {', '.join(known)}, {ALL})")
    names = (split,) if split in known else known
    positions: dict[str, tuple[str, int]] = {}
    for name in names:
        listed = about.get("ids", {}).get(name, ())
        if builder.info.splits[name].num_examples != len(listed):
            raise BadFileError(f"{root}: metadata.json lists other images than the records hold")
        for position, id in enumerate(listed):
            positions.setdefault(id, (name, position))
    skip = tfds.decode.SkipDecoding()
    raw = {"image": skip, "mask": skip}
    return RecordSource(
        name=f"{builder.info.config_name or builder.name}/{split}",
        classes=ClassList(tuple(builder.info.features["labels"].feature.names)),
        ids=tuple(positions) if ids is None else ids,
        has_background=bool(about.get("has_background", True)),
        records={
            name: grain.MapDataset.source(builder.as_data_source(name, decoders=raw))
            for name in names
        },
        positions=positions,
    )


def parse_flags() -> None:
    """Let absl believe that it has read a command line, where nobody did.

    The worker processes of grain read absl flags and fail in programs and notebooks that have
    another command line, unless they were parsed once.
    """
    if not flags.FLAGS.is_parsed():
        flags.FLAGS(sys.argv[:1] or ["wsss"])


def metadata(info: tfds.core.DatasetInfo) -> Any:
    """What a builder notes beside its records: ids by split, and whether masks know background."""
    return info.metadata or {}


def _builder(root: Path) -> Any:
    found = sorted(root.glob("**/features.json"))
    if len(found) != 1:
        raise BadFileError(f"{root}: {len(found)} prepared data sets below it, wanted one")
    try:
        return tfds.builder_from_directory(str(found[0].parent))
    except (ValueError, OSError, KeyError, TypeError, AttributeError) as problem:
        raise BadFileError(f"{found[0].parent}: not prepared records ({problem})") from problem
