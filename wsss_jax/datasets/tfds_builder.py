"""A tensorflow-datasets builder with masks, written as ArrayRecord and read through grain.

The stock ``voc`` and ``coco`` builders have no semantic masks and need TensorFlow to prepare; this
one reads any data set of ``wsss_jax.datasets.table`` and never imports it. Photographs are stored
as the bytes of their files, masks as PNG of class indices. Not here: reading them (``prepared``).
"""

import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from wsss_jax.data.photographs import decode_image, header
from wsss_jax.datasets.prepared import features, metadata, parse_flags
from wsss_jax.datasets.table import ALL, Source, open_dataset
from wsss_jax.datasets.table import splits as splits_of
from wsss_jax.errors import BadFileError, UserError
from wsss_jax.types import IGNORE

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
        metadata(self.info)["ids"][split] = kept
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


def encode(source: Source, id: str) -> dict[str, Any]:
    """One record as tensorflow-datasets takes it. Raises BadFileError for damaged pictures."""
    content, mask, size = source.encoded(id), source.mask(id), source.size(id)
    if mask is not None and mask.shape != size:
        raise BadFileError(f"{source.name}: mask of {id} is {mask.shape}, its image {size}")
    about = header(content, id)
    image = decode_image(content, id, whole=True)  # a damaged one is left out
    # Other tools decode records by themselves: only upright RGB fits what they are told.
    if (about.mode, about.orientation) != ("RGB", 1) or about.format not in ("JPEG", "PNG"):
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
