"""Frozen features as a store: what they are, and that one channel means one thing for ever."""

from dataclasses import replace

import numpy as np
import pytest
import toy_world
from flax import nnx

from wsss_jax.batches.resized import Resized, long_side
from wsss_jax.combiner import record
from wsss_jax.combiner.learn import learn
from wsss_jax.combiner.settings import Combining
from wsss_jax.data import stores
from wsss_jax.data.components import digest
from wsss_jax.data.photographs import decode_image
from wsss_jax.datasets import synthetic
from wsss_jax.datasets.table import open_dataset
from wsss_jax.errors import BadFileError, UserError
from wsss_jax.models import build
from wsss_jax.stages.features import Features, features
from wsss_jax.weights import loading as weights

KEPT = "components.npz"


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    data = synthetic.write(tmp_path_factory.mktemp("scenes"), 6, 0)
    return open_dataset(data, split="all")


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """A network of random weights in a file."""
    path = tmp_path_factory.mktemp("weights") / "tiny.npz"
    weights.save(build.backbone("tiny", rngs=nnx.Rngs(0), output_stride=16), path)
    return Features(path, backbone="tiny", taps=(1, 2, 3), channels=5, batch_size=2)


@pytest.fixture(scope="module")
def made(scenes, settings, tmp_path_factory):
    return features(scenes, tmp_path_factory.mktemp("made") / "f", settings, ids=scenes.ids)


def all_of(store):
    return {id: store.get_scores(id).scores for id in store.ids()}


def test_channels_are_standardised_and_not_correlated(made, scenes):
    assert made.classes == tuple(f"component_{i}" for i in range(5)) and made.kind == "logit"
    maps = all_of(made)
    for id, scores in maps.items():
        height, width = scenes.size(id)
        assert scores.shape == (-(-height // 8), -(-width // 8), 5)
    cells = np.concatenate([scores.reshape(-1, 5) for scores in maps.values()])
    np.testing.assert_allclose(cells.mean(0), 0, atol=0.02)
    np.testing.assert_allclose(np.cov(cells.T), np.eye(5), atol=0.05)


def test_images_that_come_later_are_seen_alike(made, scenes, settings, tmp_path):
    """Whoever asks for two images, then for all, or in another store like this one."""
    whole = all_of(made)
    few = features(scenes, tmp_path / "few", settings, ids=scenes.ids[:2])
    first = digest(few)
    more = features(scenes, tmp_path / "few", settings, ids=scenes.ids)
    assert digest(more) == first != digest(made) != ""
    alike = replace(settings, like=made.folder, batch_size=1)
    other = features(scenes, tmp_path / "other", alike, ids=scenes.ids[3:])
    assert digest(other) == digest(made)
    for id, scores in all_of(other).items():
        np.testing.assert_allclose(scores, whole[id], atol=0.01)
    before = made.path(scenes.ids[1]).read_bytes()
    made.path(scenes.ids[1]).unlink()
    features(scenes, made.folder, settings, ids=scenes.ids)
    assert made.path(scenes.ids[1]).read_bytes() == before


def test_photographs_are_looked_at_in_the_size_that_is_asked_for(made, scenes, settings, tmp_path):
    asked = replace(settings, size=24, stride=4)
    store = features(scenes, tmp_path / "small", asked, ids=scenes.ids[:2])
    for id in store.ids():
        maps, size = store.get_scores(id), scenes.size(id)
        height, width = long_side(size, 24, multiple=8)
        assert max(height, width) == 24 and height % 8 == width % 8 == 0
        assert maps.scores.shape == (height // 4, width // 4, 5) and maps.size == size
    with pytest.raises(ValueError, match="size is None, here 24"):
        features(
            scenes,
            tmp_path / "other",
            replace(asked, stride=8, like=made.folder),
            ids=scenes.ids[:1],
        )
    with pytest.raises(ValueError, match=r"taps \(1, 4\): tiny has 4 maps, 0 to 3"):
        features(scenes, tmp_path / "far", replace(settings, taps=(1, 4)), ids=scenes.ids[:1])
    with pytest.raises(ValueError, match="size is 0"):
        replace(settings, size=0)


def test_a_resized_data_set_differs_in_size_alone(scenes):
    assert long_side((441, 500), 392, multiple=14) == (350, 392)
    assert long_side((500, 20), 100, multiple=16) == (96, 16)
    small, id = Resized(scenes, lambda size: (size[0] // 2, size[1] // 2)), scenes.ids[0]
    height, width = scenes.size(id)
    half = (height // 2, width // 2)
    assert small.size(id) == half and small.image(id).shape == (*half, 3)
    np.testing.assert_array_equal(decode_image(small.encoded(id), id), small.image(id))
    assert small.mask(id).shape == half and set(np.unique(small.mask(id))) <= set(
        np.unique(scenes.mask(id))
    )
    assert (small.ids, small.classes, small.name) == (scenes.ids, scenes.classes, scenes.name)
    assert small.has_background == scenes.has_background
    np.testing.assert_array_equal(small.labels(id), scenes.labels(id))


def test_a_store_that_cannot_be_alike_is_refused(made, scenes, settings, tmp_path):
    ids = scenes.ids[:1]
    with pytest.raises(ValueError, match="channels is 5, here 4"):
        features(scenes, tmp_path / "a", replace(settings, like=made.folder, channels=4), ids=ids)
    old = stores.create(
        tmp_path / "old", holds="scores", classes=made.classes, kind="logit", made_by=made.made_by
    )
    with pytest.raises(ValueError, match="does not keep its components"):
        features(scenes, tmp_path / "b", replace(settings, like=old.folder), ids=ids)
    np.savez(old.folder / KEPT, centre=np.zeros(3, np.float32), basis=np.zeros((4, 5), np.float32))
    with pytest.raises(BadFileError, match=r"components\.npz: centre \(3,\) and basis \(4, 5\)"):
        features(scenes, tmp_path / "c", replace(settings, like=old.folder), ids=ids)


def test_a_combiner_refuses_features_of_another_meaning(tmp_path):
    inputs = toy_world.written(tmp_path, count=2)
    inputs = replace(inputs, features=inputs.features[:1])
    first = inputs.features[0].folder
    kept = {"centre": np.zeros(3, np.float32), "basis": np.eye(3, dtype=np.float32)}
    np.savez(first / KEPT, **kept)
    settings = Combining(cells=24, walk_steps=0, rounds=1)
    run = learn(inputs, tmp_path / "run", settings, ids=inputs.source.ids)
    assert record.load(run, inputs)[2].cells == 24
    np.savez(first / KEPT, **kept | {"basis": 2 * kept["basis"]})
    with pytest.raises(UserError, match="give the features of its training"):
        record.load(run, inputs)
    (first / KEPT).unlink()
    with pytest.raises(UserError, match="give the features of its training"):
        record.load(run, inputs)
