"""The builder writes any data set as ArrayRecord without TensorFlow, and grain reads it back."""

import json
import pickle
import shutil
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from absl import flags
from PIL import Image

from wsss_jax.datasets import prepared, tfds_builder
from wsss_jax.datasets import table as datasets
from wsss_jax.errors import BadFileError, MissingFileError
from wsss_jax.types import IGNORE


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A small MSRC-like folder with a list, a bad image, and its prepared records."""
    base = tmp_path_factory.mktemp("tfds")
    root = base / "tiny"
    for name in ("images", "masks", "splits"):
        (root / name).mkdir(parents=True)
    random = np.random.default_rng(0)
    for place, id in enumerate(("c", "a", "d")):
        pixels = random.integers(0, 256, (5 + place, 7, 3), np.uint8)
        Image.fromarray(pixels).save(root / f"images/{id}.jpg")
    Image.new("RGBA", (4, 3), (10, 20, 30, 0)).save(root / "images/b.png")
    (root / "images/bad.jpg").write_bytes(b"no picture")
    Image.fromarray(np.arange(35, dtype=np.uint8).reshape(5, 7) % 3).save(root / "masks/c.png")
    entries = {"a": [1, 2], "b": [], "c": ["red fox"], "d": [2], "bad": []}
    content = {"classes": ["void", "red fox", "owl"], "image_labels": entries}
    (root / "labels.json").write_text(json.dumps(content))
    (root / "splits/train.txt").write_text("d\nbad\nc\nb\n")
    (root / "splits/val.txt").write_text("a\n")
    left_out = []
    folder = tfds_builder.write(
        root, base / "records", bad=lambda id, problem: left_out.append((id, problem))
    )
    return root, folder, left_out


def test_records_hold_what_the_data_set_holds(written):
    root, folder, _ = written
    plain = datasets.open_dataset(root, split="train")
    kept = datasets.open_dataset(folder, split="train")
    assert datasets.layout_of(folder) == "tfds" and datasets.splits(folder) == ("train", "val")
    assert kept.ids == ("d", "c", "b") and kept.classes == plain.classes
    assert not kept.has_background
    for id in kept.ids:
        assert (kept.image(id) == plain.image(id)).all()
        assert (kept.labels(id) == plain.labels(id)).all() and kept.size(id) == plain.size(id)
        assert (kept.mask(id) is None) == (plain.mask(id) is None)
    assert kept.encoded("c") == plain.encoded("c")
    assert (kept.mask("c") == plain.mask("c")).all() and (kept.mask("c") == IGNORE).any()


def test_bad_images_are_left_out_only_where_someone_is_told(written, tmp_path):
    root, _, left_out = written
    assert [id for id, _ in left_out] == ["bad"]
    with pytest.raises(BadFileError, match=r"bad\.jpg"):
        tfds_builder.write(root, tmp_path)


def test_tensorflow_stays_out(written):
    assert written and "tensorflow" not in sys.modules


def test_other_programs_decode_the_records(written):
    example = tfds.builder_from_directory(str(written[1])).as_data_source("train")[2]
    assert example["image"].shape == (3, 4, 3) and example["mask"].shape == (3, 4, 1)


def test_sources_travel_to_worker_processes(written):
    source = datasets.open_dataset(written[1], split="train")
    again = pickle.loads(pickle.dumps(source))
    assert (again.image("c") == source.image("c")).all()


def test_flags_are_parsed_for_the_workers_of_grain(written):
    datasets.open_dataset(written[1], split="val")
    assert flags.FLAGS.is_parsed()


def test_errors_name_the_record(written, tmp_path):
    root, folder, _ = written
    source = datasets.open_dataset(folder, split="train")
    with pytest.raises(MissingFileError, match="nobody"):
        source.image("nobody")
    with pytest.raises(BadFileError, match="train, val"):
        datasets.open_dataset(folder, split="test")
    with pytest.raises(BadFileError, match="wanted one"):
        prepared.open_records(tmp_path, "train")
    with pytest.raises(ValueError, match="prepared before"):
        tfds_builder.write(root, folder.parents[2])


def test_a_flipped_bit_is_an_error_of_its_record(written, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(written[1], copy)
    (path,) = copy.glob("*train*array_record*")
    content = bytearray(path.read_bytes())
    content[300] ^= 1  # inside the first record
    path.write_bytes(content)
    source = datasets.open_dataset(copy, split="train")
    with pytest.raises(BadFileError, match="of d is damaged"):
        source.image("d")
    assert source.image("c").shape == (5, 7, 3)
