"""A tensorflow-datasets builder with masks, written as ArrayRecord and read through grain.

The stock ``voc`` and ``coco`` builders have no semantic masks and need TensorFlow to prepare; this
one reads any data set of ``wsss_jax.data.datasets`` and never imports it. Photographs are stored
as the bytes of their files, masks as PNG of class indices. Damage is found record by record: each
has a checksum. Not here: batches, augmentation.
"""

import io
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grain
import numpy as np
import tensorflow_datasets as tfds
from absl import flags
from jaxtyping import Bool, UInt8
from PIL import Image

from wsss_jax.data.classes import ClassList
from wsss_jax.data.datasets import ALL, Source, open_dataset
from wsss_jax.data.datasets import splits as splits_of
from wsss_jax.data.files import decode_image, decode_mask, encoded_mode
from wsss_jax.errors import BadFileError, MissingFileError, UserError
from wsss_jax.types import IGNORE, Size

BadImage = Callable[[str, BadFileError], None]
"""What is told of an image that is left out: its id and why."""


@dataclass(eq=False, kw_only=True)
class WsssConfig(tfds.core.BuilderConfig):
    """Which data set the builder reads: its folder, layout and splits (None: all that differ).

    bad: told of images that cannot be read, which are then left out; without it they raise.
    """

    root: Path
    layout: str = "auto"
    splits: tuple[str, ...] | None = None
    bad: BadImage | None = None


class Wsss(tfds.core.GeneratorBasedBuilder):
    """Images, multi-label image labels and masks of any data set that this program reads.

    Features: id; image (as in its file, RGB); labels (0-based classes that the image shows); mask
    (0 = background, class + 1, 255 = ignore; all 255 without truth); has_mask; size (H, W).
    """

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        config = self._config()
        source = open_dataset(config.root, split=_chosen(config)[0], layout=config.layout)
        # Records keep the order of their list, so that an id is found by its position.
        return tfds.core.DatasetInfo(
            builder=self,
            description="Photographs, image-level labels and semantic masks.",
            features=features(source.classes),
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(ids={}, has_background=source.has_background),
        )

    def _split_generators(self, dl_manager: Any) -> Mapping[str, Iterator[tuple[str, Any]]]:
        del dl_manager
        return {split: self._generate_examples(split) for split in _chosen(self._config())}

    def _generate_examples(self, split: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
        config = self._config()
        source = open_dataset(config.root, split=split, layout=config.layout)
        kept: list[str] = []
        _metadata(self.info)["ids"][split] = kept
        for id in source.ids:
            try:
                example = encode(source, id)
            except BadFileError as problem:
                if config.bad is None:
                    raise
                config.bad(id, problem)
                continue
            kept.append(id)
            yield id, example

    def _config(self) -> WsssConfig:
        config = self.builder_config
        if not isinstance(config, WsssConfig):
            raise UserError(f"config is {config!r}, wanted a WsssConfig with the data set's root")
        return config


@dataclass(frozen=True)
class RecordSource:
    """A source of prepared records; one read of a record gives its photograph, labels and mask.

    records: a grain dataset of encoded features. positions: where each id lies in it.
    """

    name: str
    classes: ClassList
    ids: tuple[str, ...]
    has_background: bool
    records: grain.MapDataset
    positions: Mapping[str, int]

    def labels(self, id: str) -> Bool[np.ndarray, " c"]:
        """Which classes the image shows."""
        found = np.zeros(len(self.classes), bool)
        found[np.asarray(self._record(id)["labels"], np.int64)] = True
        return found

    def image(self, id: str) -> UInt8[np.ndarray, "H W 3"]:
        """The photograph as RGB in raw orientation."""
        return decode_image(self.encoded(id), id)

    def size(self, id: str) -> Size:
        """(height, width) as recorded."""
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
            record: Any = self.records[self.positions[id]]
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


def write(
    root: Path,
    data_dir: Path,
    *,
    layout: str = "auto",
    splits: tuple[str, ...] | None = None,
    bad: BadImage | None = None,
) -> Path:
    """Prepare the data set in ``root`` as ArrayRecords below ``data_dir``; returns their folder.

    splits: default "train" and "val" where both exist, else all but "all". bad: told of images
    that cannot be read, which are then left out; without it the first one raises BadFileError.
    Raises ValueError where the same data set was prepared before.
    """
    parse_flags()
    config = WsssConfig(name=root.resolve().name, root=root, layout=layout, splits=splits, bad=bad)
    builder = Wsss(data_dir=str(data_dir), config=config, file_format="array_record")
    if builder.data_path.exists():
        raise UserError(f"{builder.data_path} was prepared before; delete it or write elsewhere")
    builder.download_and_prepare()
    return Path(builder.data_path)


def splits(root: Path) -> tuple[str, ...]:
    """Splits of prepared records. Raises BadFileError."""
    return tuple(sorted(_builder(root).info.splits))


def open_records(root: Path, split: str, *, ids: tuple[str, ...] | None = None) -> RecordSource:
    """A split of what ``write`` prepared; ids: these images instead of all. Raises BadFileError.

    root: the folder that ``write`` returned, or one above it that holds no other.
    """
    parse_flags()
    builder = _builder(root)
    metadata = _metadata(builder.info)
    listed = metadata.get("ids", {}).get(split)
    if split not in builder.info.splits or listed is None:
        known = ", ".join(builder.info.splits)
        raise BadFileError(f"{root}: no split {split!r} (there are: {known})")
    if builder.info.splits[split].num_examples != len(listed):
        raise BadFileError(f"{root}: metadata.json lists other images than the records hold")
    skip = tfds.decode.SkipDecoding()
    source = builder.as_data_source(split, decoders={"image": skip, "mask": skip})
    return RecordSource(
        name=f"{builder.info.config_name or builder.name}/{split}",
        classes=ClassList(tuple(builder.info.features["labels"].feature.names)),
        ids=tuple(listed) if ids is None else ids,
        has_background=bool(metadata.get("has_background", True)),
        records=grain.MapDataset.source(source),
        positions={id: position for position, id in enumerate(listed)},
    )


def parse_flags() -> None:
    """Let absl believe that it has read a command line, where nobody did.

    The worker processes of grain read absl flags and fail in programs and notebooks that have
    another command line, unless they were parsed once.
    """
    if not flags.FLAGS.is_parsed():
        flags.FLAGS(sys.argv[:1] or ["wsss"])


def encode(source: Source, id: str) -> dict[str, Any]:
    """One record as tensorflow-datasets takes it. Raises BadFileError for damaged pictures."""
    image, mask = source.image(id), source.mask(id)
    size = image.shape[:2]
    if mask is not None and mask.shape != size:
        raise BadFileError(f"{source.name}: mask of {id} is {mask.shape}, its image {size}")
    content = source.encoded(id)
    # Other tools decode records by themselves, and only RGB fits the shape that they are told.
    if encoded_mode(content, id)[0] != "RGB":
        content = _png(image)
    unknown = np.full(size, IGNORE, np.uint8)
    return {
        "id": id,
        "image": io.BytesIO(content),
        "labels": np.flatnonzero(source.labels(id)).tolist(),
        "mask": io.BytesIO(_png(unknown if mask is None else mask)),
        "has_mask": mask is not None,
        "size": np.asarray(size, np.int32),
    }


def _metadata(info: tfds.core.DatasetInfo) -> Any:
    """What a builder notes beside its records: ids by split, and whether masks know background."""
    return info.metadata or {}


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _chosen(config: WsssConfig) -> tuple[str, ...]:
    if config.splits:
        return config.splits
    known = splits_of(config.root, config.layout)
    usual = ("train", "val")
    return usual if set(usual) <= set(known) else tuple(s for s in known if s != ALL) or known


def _builder(root: Path) -> Any:
    found = sorted(root.glob("**/features.json"))
    if len(found) != 1:
        raise BadFileError(f"{root}: {len(found)} prepared data sets below it, wanted one")
    try:
        return tfds.builder_from_directory(str(found[0].parent))
    except (ValueError, OSError, KeyError, TypeError, AttributeError) as problem:
        raise BadFileError(f"{found[0].parent}: not prepared records ({problem})") from problem
