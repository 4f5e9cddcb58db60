import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wsss_jax.batches.augment import Augmentation
from wsss_jax.batches.batches import inference_groups, rows_for, training_batches
from wsss_jax.batches.canvases import (
    canvas_for,
    choose_canvases,
    scaled_canvas,
    scaled_size,
    scales_on,
)
from wsss_jax.data.classes import ClassList
from wsss_jax.errors import BadFileError, MissingFileError

CROP = Augmentation(crop=16, long_side=(14, 24))


@dataclass
class Memory:
    """A source of made-up images: sizes by number, some of them damaged or without labels."""

    count: int = 10
    bad: frozenset = frozenset()
    bare: frozenset = frozenset()
    reads: list = field(default_factory=list)
    name = "memory"
    classes = ClassList(("cat", "dog"))
    has_background = True

    @property
    def ids(self):
        return tuple(f"i{n}" for n in range(self.count))

    def mask(self, id):
        raise AssertionError("the truth is nobody's business here")

    def encoded(self, id):
        raise AssertionError("nobody asks for bytes here")

    def labels(self, id):
        n = int(id[1:])
        if id in self.bare:
            raise MissingFileError(f"{id}: no labels")
        return np.array([n % 2 == 0, n % 3 == 0 or n % 2 == 1])

    def size(self, id):
        n = int(id[1:])
        return (20 + n % 3, 30) if n % 2 else (30, 20 + n % 5)

    def image(self, id):
        self.reads.append(id)
        if id in self.bad:
            raise BadFileError(f"{id}: damaged")
        n = int(id[1:])
        return np.random.default_rng(n).integers(1, 256, (*self.size(id), 3)).astype(np.uint8)


def take(batches, steps):
    return [next(batches) for _ in range(steps)]


def same(first, second):
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one.images, other.images)
        np.testing.assert_array_equal(one.labels, other.labels)
        np.testing.assert_array_equal(one.inside, other.inside)


def test_training_batches_have_the_promised_shapes_and_ranges():
    batches = training_batches(Memory(), CROP, seed=0, batch_size=4)
    assert batches.steps_per_epoch == 2
    for batch in take(batches, 5):
        assert batch.images.shape == (4, 16, 16, 3) and batch.images.dtype == np.float32
        assert 0 <= batch.images.min() and batch.images.max() <= 1
        assert batch.inside.shape == (4, 16, 16) and batch.inside.dtype == bool
        assert (batch.images[~batch.inside] == 0).all()
        assert batch.labels.shape == (4, 2) and batch.real.all() and batch.masks is None


def test_the_seed_decides_everything():
    first, again, other = (
        take(training_batches(Memory(), CROP, seed=s, batch_size=4, read_threads=t), 4)
        for s, t in ((1, 2), (1, 1), (2, 2))
    )
    same(first, again)
    assert any((a.images != b.images).any() for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("steps", [0, 1, 2, 5])
def test_a_run_resumes_exactly(steps):
    batches = training_batches(Memory(), CROP, seed=0, batch_size=4)
    take(batches, steps)
    state = json.loads(json.dumps(batches.get_state()))
    wanted = take(batches, 3)
    same(take(training_batches(Memory(), CROP, seed=0, batch_size=4, start=state), 3), wanted)
    batches.set_state(state)
    same(take(batches, 3), wanted)


def test_the_state_of_other_batches_is_refused():
    state = training_batches(Memory(), CROP, seed=0, batch_size=4).get_state()
    with pytest.raises(ValueError, match="other images, settings, seed"):
        training_batches(Memory(), CROP, seed=1, batch_size=4, start=state)


def plain(side=24):
    return Augmentation(
        crop=40, long_side=(side, side), flip=0.0, brightness=0.0, contrast=0.0, saturation=0.0,
        hue=0.0,
    )  # fmt: skip


def seen_ids(batches, source, steps):
    """Which images came, recognised by their mean colour: nothing but resizing was done."""
    means = {}
    for id in source.ids:
        if id not in source.bad:
            height, width = source.size(id)
            size = (round(width * 24 / max(height, width)), round(height * 24 / max(height, width)))
            picture = Image.fromarray(Memory().image(id)).resize(size, Image.Resampling.BICUBIC)
            means[id] = np.asarray(picture).mean((0, 1)) / 255
    found = []
    for batch in take(batches, steps):
        for image, inside in zip(batch.images, batch.inside, strict=True):
            mean = image[inside].mean(0)
            found.append(min(means, key=lambda id: np.abs(means[id] - mean).sum()))
    return found


def test_an_epoch_shows_no_image_twice_and_epochs_differ():
    source = Memory()
    batches = training_batches(source, plain(), seed=0, batch_size=3)
    first, second = (seen_ids(batches, source, 3) for _ in range(2))
    assert len(set(first)) == len(set(second)) == 9
    assert first != second


def test_hosts_together_see_what_one_alone_sees():
    source = Memory(11, bad=frozenset({"i3"}))
    alone = training_batches(source, CROP, seed=0, batch_size=4)
    parts = [
        training_batches(source, CROP, seed=0, batch_size=4, shard=(index, 2)) for index in range(2)
    ]
    for step in range(6):  # over two epochs
        if step == 3:  # a host goes on, where another number of hosts was
            parts[1].set_state(json.loads(json.dumps(alone.get_state())))
        whole, halves = next(alone), [next(part) for part in parts]
        joined = np.concatenate([half.images for half in halves])
        np.testing.assert_array_equal(joined, whole.images)
    assert alone.steps_per_epoch == parts[0].steps_per_epoch == 2


def test_bad_images_are_named_counted_and_replaced():
    source = Memory(bad=frozenset({"i3", "i4"}), bare=frozenset({"i7"}))
    batches = training_batches(source, plain(), seed=0, batch_size=3)
    assert batches.skipped == {"i7": "i7: no labels"}
    ids = seen_ids(batches, source, 6)
    assert set(batches.skipped) == {"i3", "i4", "i7"} and batches.skipped["i3"] == "i3: damaged"
    assert not {"i3", "i4", "i7"} & set(ids) and len(ids) == 18
    again = Memory(bad=source.bad, bare=source.bare)
    batches = training_batches(again, plain(), seed=0, batch_size=3, read_threads=1)
    assert seen_ids(batches, again, 6) == ids
    assert again.reads.count("i3") == 1, "a bad file is read once"


def test_an_image_of_no_class_teaches_that():
    class Negatives(Memory):
        def labels(self, id):
            return super().labels(id) & (id != "i7")

    batches = training_batches(Negatives(8), plain(), seed=0, batch_size=8)
    labels = np.asarray(next(batches).labels)
    assert not batches.skipped and (~labels.any(axis=1)).sum() == 1


def test_large_images_come_in_smaller_groups_of_as_many_pixels():
    assert rows_for((512, 1024), 8) == 8 and rows_for((896, 1184), 8) == 1
    assert rows_for((896, 1184), 64) == 15 and rows_for((4096, 4096), 1) == 1


def test_a_set_of_bad_images_only_is_an_error():
    batches = training_batches(
        Memory(4, bad=frozenset({"i0", "i1", "i2", "i3"})), CROP, seed=0, batch_size=2
    )
    with pytest.raises(BadFileError, match="none of 4 images"):
        next(batches)


def test_masks_come_with_the_images_and_wrong_ones_are_skipped():
    source = Memory(4)

    def masks(id):
        if id == "i2":
            return np.zeros((3, 3), np.uint8)
        return (source.image(id)[..., 0] > 127).astype(np.uint8)

    settings = Augmentation(**{**vars(plain()), "long_side": (30, 30)})
    batches = training_batches(source, settings, seed=0, batch_size=4, masks=masks)
    batch = next(batches)
    assert batch.masks.dtype == np.int32 and (batch.masks[~batch.inside] == 255).all()
    np.testing.assert_array_equal(
        batch.masks[batch.inside] == 1, batch.images[batch.inside][:, 0] > 127.5 / 255
    )
    assert "mask (3, 3)" in batches.skipped["i2"]


def test_the_cache_keeps_as_many_images_as_fit():
    source = Memory(4)
    size = source.image("i1").nbytes
    source.reads.clear()
    batches = training_batches(source, CROP, seed=0, batch_size=4, cache_bytes=3 * size)
    take(batches, 8)
    counts = sorted(source.reads.count(id) for id in source.ids)
    assert counts[0] <= 2 and counts[-1] >= 8


@pytest.mark.parametrize(
    "wrong", [{"batch_size": 20}, {"batch_size": 3, "shard": (0, 2)}, {"shard": (2, 2)}]
)
def test_impossible_training_batches_are_refused(wrong):
    with pytest.raises(ValueError, match="batch"):
        training_batches(Memory(), CROP, **{"seed": 0, "batch_size": 4, **wrong})


NOTEBOOK = """
import numpy as np
from wsss_jax.batches import augment, batches
from wsss_jax.data import classes

class Source:
    name, classes, has_background, ids = "x", classes.ClassList(("cat",)), True, ("a", "b")
    def labels(self, id): return np.array([True])
    def image(self, id): return np.zeros((9, 9, 3), np.uint8)

settings = augment.Augmentation(crop=8, long_side=(8, 8))
print(next(batches.training_batches(Source(), settings, seed=0, batch_size=2)).images.sum())
"""


def test_batches_work_in_a_process_that_never_parsed_flags():
    command = [sys.executable, "-c", NOTEBOOK, "--epochs", "3"]
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=root)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "0.0"


def groups(source, ids=None, **settings):
    skipped = {}
    settings = {"scales": (0.5, 1.0, 1.5), "batch_size": 4, "multiple": 8, **settings}
    ids = source.ids if ids is None else ids
    found = list(inference_groups(source, ids, skip=skipped.__setitem__, **settings))
    return found, skipped


def test_every_image_comes_once_on_few_shapes():
    source = Memory(23)
    found, skipped = groups(source)
    assert sorted(id for group in found for id in group.ids) == sorted(source.ids) and not skipped
    canvases = choose_canvases([source.size(id) for id in source.ids], multiple=8)
    shapes = {batch.images.shape for group in found for batch in group.scaled}
    assert len(shapes) <= len(canvases) * 3
    assert all(len(group.ids) == 4 for group in found[:1])


def test_images_lie_resized_at_the_top_left_of_each_scale():
    source = Memory(5)
    found, _ = groups(source, batch_size=2)
    for group in found:
        for row, id in enumerate(group.ids):
            assert tuple(group.sizes[row]) == source.size(id)
            np.testing.assert_array_equal(group.labels[row], source.labels(id))
            for scale, batch in zip((0.5, 1.0, 1.5), group.scaled, strict=True):
                height, width = scaled_size(source.size(id), scale)
                inside = batch.inside[row]
                assert inside[:height, :width].all() and inside.sum() == height * width
                assert (batch.images[row][~inside] == 0).all()
                picture = Image.fromarray(source.image(id))
                picture = picture.resize((width, height), Image.Resampling.BICUBIC)
                wanted = np.asarray(picture).astype(np.float32) / 255
                np.testing.assert_allclose(batch.images[row, :height, :width], wanted, atol=1e-6)
                assert all(side % 8 == 0 for side in batch.images.shape[1:3])


def test_short_groups_are_filled_with_rows_that_are_not_real():
    found, _ = groups(Memory(3), batch_size=4, canvases=[(32, 32)])
    (group,) = found
    assert group.ids == ("i0", "i1", "i2") and not group.labels[3].any()
    for batch in group.scaled:
        assert batch.real.tolist() == [True, True, True, False]
        np.testing.assert_array_equal(batch.images[3], batch.images[0])


def test_bad_images_are_reported_and_their_place_is_taken():
    source = Memory(9, bad=frozenset({"i2", "i5"}))
    found, skipped = groups(source, batch_size=4, canvases=[(32, 32)])
    assert skipped == {"i2": "i2: damaged", "i5": "i5: damaged"}
    assert [len(group.ids) for group in found] == [4, 3]


def test_no_images_make_no_groups():
    assert groups(Memory(), ids=()) == ([], {})


def test_an_error_of_the_source_is_not_swallowed():
    class Broken(Memory):
        def image(self, id):
            raise RuntimeError("the disk is gone")

    with pytest.raises(RuntimeError, match="the disk is gone"):
        groups(Broken())


def test_leaving_early_is_clean():
    source = Memory(40)
    stream = inference_groups(source, source.ids, scales=(1.0,), batch_size=2, skip=lambda *_: None)
    next(stream)
    stream.close()
    assert len(source.reads) <= 8, "only one group is made ahead"


def test_three_canvases_for_three_shapes_are_the_shapes():
    assert choose_canvases([(64, 96), (96, 64), (64, 64)]) == ((64, 64), (64, 96), (96, 64))


def test_canvases_merge_where_it_costs_least():
    sizes = [(96, 128)] * 50 + [(128, 96)] * 50 + [(90, 100), (128, 128)]
    assert choose_canvases(sizes, count=2) == ((96, 128), (128, 128))
    assert choose_canvases(sizes, count=1) == ((128, 128),)


def test_every_size_fits_its_canvas_at_every_scale():
    rng = np.random.default_rng(0)
    sizes = [(int(h), int(w)) for h, w in rng.integers(30, 500, (80, 2))]
    canvases = choose_canvases(sizes)
    assert len(canvases) == 3
    for size in sizes:
        for scale in (0.05, 0.5, 0.75, 1.0, 1.5, 2.0):
            canvas = scaled_canvas(canvas_for(size, canvases), scale)
            inner = scaled_size(size, scale)
            assert inner[0] <= canvas[0] and inner[1] <= canvas[1]


def test_a_size_that_fits_nowhere_is_refused():
    with pytest.raises(ValueError, match=r"\(50, 20\)"):
        canvas_for((50, 20), [(32, 32)])
    with pytest.raises(ValueError, match="0 sizes"):
        choose_canvases([])


def test_photographs_waste_little_on_three_canvases(shared):
    from wsss_jax.data.files import image_size

    folder = shared / "data" / "voc12_animals" / "JPEGImages"
    sizes = [image_size(path) for path in folder.glob("*.jpg")]
    canvases = choose_canvases(sizes)
    homes = [canvas_for(size, canvases) for size in sizes]
    area = sum(h * w for h, w in homes) / sum(h * w for h, w in sizes)
    assert len(canvases) == 3 and area < 1.125


def test_large_canvases_are_seen_at_smaller_scales_and_none_twice():
    assert scales_on((512, 512), (0.5, 1.0, 2.0)) == (0.5, 1.0, 2.0)
    found = scales_on((1024, 1024), (0.5, 1.0, 1.5, 2.0))
    assert found == pytest.approx((0.5, 1.0, 2**0.5))
    assert scales_on((4000, 3000), (0.5, 1.0, 2.0)) == (0.5, 1.0)
