import json

import numpy as np
import pytest

from wsss_jax.data.files import read_levels, read_mask
from wsss_jax.datasets import synthetic
from wsss_jax.datasets.synthetic import CLASSES, Scenes, saliency, scene, write
from wsss_jax.datasets.table import open_dataset

SMALL = Scenes(size=48)


@pytest.fixture(scope="module")
def scenes():
    return [scene(0, index) for index in range(120)]


def test_a_scene_depends_on_seed_and_index_alone(scenes):
    again = scene(0, 7)
    np.testing.assert_array_equal(again.image, scenes[7].image)
    np.testing.assert_array_equal(again.mask, scenes[7].mask)
    assert (scene(1, 7).image != again.image).any()
    assert again.image.shape == (96, 96, 3) and again.image.dtype == np.uint8


def test_labels_are_exactly_the_classes_of_the_mask(scenes):
    for sample in scenes:
        present = np.unique(sample.mask)
        assert set(present) <= set(range(len(CLASSES) + 1))
        np.testing.assert_array_equal(np.flatnonzero(sample.labels) + 1, present[present > 0])
        assert sample.labels.any()


def test_no_labelled_class_is_a_sliver(scenes):
    areas = [int((s.mask == c + 1).sum()) for s in scenes for c in np.flatnonzero(s.labels)]
    assert min(areas) >= 20
    assert min(areas) < 250 and max(areas) > 1500  # small creatures and large ones


def test_every_class_comes_often_and_two_keep_company(scenes):
    labels = np.stack([sample.labels for sample in scenes])
    assert labels.mean(0).min() > 0.15
    assert labels.sum(1).max() >= 3 and (labels.sum(1) == 1).mean() > 0.25
    together = labels.T.astype(int) @ labels.astype(int)
    np.fill_diagonal(together, 0)
    assert together[0, 1] == together.max()


def test_background_fills_most_but_not_all(scenes):
    part = np.mean([(sample.mask > 0).mean() for sample in scenes])
    assert 0.1 < part < 0.35


def test_the_mean_colour_does_not_tell_the_class(scenes):
    def features(sample):
        return [*sample.image.mean((0, 1)) / 255, *sample.image.std((0, 1)) / 255, 1]

    inputs = np.array([features(sample) for sample in scenes])
    labels = np.stack([sample.labels for sample in scenes]).astype(float)
    fitted = np.linalg.lstsq(inputs[:80], labels[:80], rcond=None)[0]
    right = ((inputs[80:] @ fitted > 0.5) == (labels[80:] > 0.5)).mean()
    assert right < 0.8


def test_bodies_are_of_any_colour_but_heads_are_striking():
    heads = [synthetic.CREATURES[name].colours for name in CLASSES.names]
    assert len(set(heads)) == len(heads), "no two classes share the colours of their heads"
    assert synthetic.STONE.pattern is None


def test_stones_change_the_image_and_not_the_mask():
    with_stone, without = (scene(4, 0, Scenes(stone=chance, noise=0.0)) for chance in (1.0, 0.0))
    assert with_stone.mask is not None and without.mask is not None
    assert (with_stone.image != without.image).any()
    assert set(np.unique(with_stone.mask)) == {0, *(np.flatnonzero(with_stone.labels) + 1)}


@pytest.mark.parametrize("side", [32, 75])
def test_the_side_is_a_setting(side):
    sample = scene(0, 0, Scenes(size=side))
    assert sample.image.shape == (side, side, 3) and sample.mask.shape == (side, side)


def test_saliency_is_better_than_chance_and_far_from_the_truth(scenes):
    maps = np.stack([saliency(sample.image) for sample in scenes[:60]]) > 80
    truth = np.stack([sample.mask for sample in scenes[:60]]) > 0
    overlap = (maps & truth).sum() / (maps | truth).sum()
    assert 0.35 < overlap < 0.8 and overlap > 2 * truth.mean()


def test_a_flat_image_has_finite_saliency():
    flat = saliency(np.full((40, 32, 3), 128, np.uint8))
    assert flat.shape == (40, 32) and flat.dtype == np.uint8


def test_a_written_folder_is_read_back_as_it_was_drawn(tmp_path):
    write(tmp_path, 6, 3, settings=SMALL)
    sizes = {}
    for split in ("train", "val"):
        source = open_dataset(tmp_path, split=split)
        sizes[split] = len(source.ids)
        assert source.classes == CLASSES
        for id in source.ids:
            drawn = scene(3, int(id.removeprefix("scene_")), SMALL)
            np.testing.assert_array_equal(source.image(id), drawn.image)
            np.testing.assert_array_equal(source.mask(id), drawn.mask)
            np.testing.assert_array_equal(source.labels(id), drawn.labels)
            cue = read_levels(tmp_path / "saliency" / f"{id}.png")
            np.testing.assert_array_equal(np.rint(cue * 255), saliency(drawn.image))
    assert sizes == {"train": 4, "val": 2}


def test_writing_again_keeps_files_and_makes_up_for_lost_ones(tmp_path):
    write(tmp_path, 4, 0, settings=SMALL)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")}
    lost = tmp_path / "masks" / "scene_00001.png"
    lost.unlink()
    write(tmp_path, 6, 0, settings=SMALL)
    after = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")}
    assert len(after) == 18 and all(after[p] == t for p, t in before.items() if p != lost)
    np.testing.assert_array_equal(read_mask(lost), scene(0, 1, SMALL).mask)
    assert len(json.loads((tmp_path / "labels.json").read_text())["image_labels"]) == 6


def test_another_seed_in_the_same_folder_is_refused(tmp_path):
    write(tmp_path, 1, 0, settings=SMALL)
    with pytest.raises(ValueError, match="seed: 0 -> 1"):
        write(tmp_path, 1, 1, settings=SMALL)


@pytest.mark.parametrize("wrong", [{"size": 8}, {"objects": (0, 2)}, {"radius": (0.3, 0.2)}])
def test_impossible_scenes_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Scenes(**wrong)
