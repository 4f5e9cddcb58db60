"""The linear probe: what cells of a class look like over the whole data set, without a mask."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from wsss_jax.combiner import linear_probe, network, probe_maps
from wsss_jax.combiner.network import CombinerShape
from wsss_jax.combiner.probe_maps import Probe
from wsss_jax.errors import BadFileError

SHAPE = (4, 5)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def made(salient=False):
    depth = 3 + 9 + 2 * salient
    return Probe(("cat", "cow", "dog"), normal(depth, 4), normal(4, seed=1), salient)


def grids():
    image = np.random.default_rng(2).uniform(size=(*SHAPE, 3)).astype(np.float32)
    return normal(*SHAPE, 3, seed=3), image


def test_it_says_probabilities_of_the_classes_that_are_there():
    one, (features, image) = made(), grids()
    alone = one.maps(features, image, None, ("cow",))
    pair = one.maps(features, image, None, ("dog", "cow"))
    assert alone.shape == (*SHAPE, 1) and pair.shape == (*SHAPE, 2)
    logits = probe_maps.seen(features, image, None, salient=False) @ one.kernel + one.offset
    odds = np.exp(logits[:, 2] - logits[:, 0]).reshape(SHAPE)
    np.testing.assert_allclose(alone[..., 0], odds / (1 + odds), rtol=1e-4)
    rest = 1 - pair.sum(axis=-1)
    np.testing.assert_allclose(pair[..., 1] / rest, odds, rtol=1e-2)
    assert one.maps(features, image, None, ("cow", "boat")) is None


def test_saliency_counts_where_it_has_learned_from_it_and_is_a_half_where_there_is_none():
    features, image = grids()
    half = np.full(SHAPE, 0.5, np.float32)
    for salient in (True, False):
        one = made(salient)
        none, level, high = (
            one.maps(features, image, saliency, ("cat", "dog"))
            for saliency in (None, half, 2 * half)
        )
        np.testing.assert_allclose(none, level, atol=1e-6)
        assert (np.abs(high - level).max() > 0.01) == salient


def test_without_background_the_classes_share_everything():
    features, image = grids()
    one = made()
    one = replace(one, offset=np.array([-np.inf, *one.offset[1:]], np.float32))
    np.testing.assert_allclose(
        one.maps(features, image, None, ("cat", "dog")).sum(-1), 1, atol=1e-6
    )


def test_the_mean_of_two_opinions_is_geometric_and_sums_to_one():
    random = np.random.default_rng(0)
    first = random.dirichlet(np.ones(3), SHAPE).astype(np.float32)
    second = random.dirichlet(np.ones(3), SHAPE).astype(np.float32)
    both = probe_maps.averaged(first, second[..., 1:])
    np.testing.assert_allclose(both.sum(axis=-1), 1, atol=1e-5)
    ratio = np.sqrt(first * second)
    np.testing.assert_allclose(
        both[..., 1] / both[..., 0], ratio[..., 1] / ratio[..., 0], rtol=1e-3
    )
    np.testing.assert_allclose(probe_maps.averaged(first, first[..., 1:]), first, atol=1e-5)
    assert probe_maps.averaged(first, None) is first


def test_it_is_read_as_it_was_written(tmp_path):
    one = made(salient=True)
    one.save(tmp_path / "probe.npz")
    found = probe_maps.load(tmp_path / "probe.npz")
    assert found.classes == one.classes and found.salient
    np.testing.assert_array_equal(found.kernel, one.kernel)
    np.testing.assert_array_equal(found.offset, one.offset)


def test_a_damaged_file_is_named(tmp_path):
    path = tmp_path / "probe.npz"
    made().save(path)
    whole = path.read_bytes()
    with np.load(path) as arrays:
        np.savez(path, **{**arrays, "offset": normal(3)})
    with pytest.raises(BadFileError, match=r"probe\.npz: kernel \(12, 4\) and offset \(3,\) for 3"):
        probe_maps.load(path)
    path.write_bytes(whole[:200])
    with pytest.raises(BadFileError, match=r"probe\.npz"):
        probe_maps.load(path)


def cells(count=600):
    """Cells of three classes in a plane, and which of them an image of the cell shows."""
    random = np.random.default_rng(0)
    truth = random.integers(0, 3, count)
    centres = np.array([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0]])
    seen = (centres[truth] + random.normal(size=(count, 2))).astype(np.float32)
    possible = np.ones((count, 3), bool)
    possible[truth == 0, 1 + random.integers(0, 2, (truth == 0).sum())] = False
    return seen, truth, possible, np.ones(count)


def test_it_tells_classes_apart_though_labels_err():
    seen, truth, possible, weights = cells()
    random = np.random.default_rng(1)
    wrong = random.random(len(truth)) < 0.3
    labels = np.where(wrong, random.integers(0, 3, len(truth)), truth)
    kernel, offset = linear_probe.fit(seen, labels, np.ones_like(possible), weights, penalty=1e-3)
    found = (seen @ kernel + offset).argmax(axis=1)
    assert (labels == truth).mean() < 0.85 < 0.95 < (found == truth).mean()


def test_a_cell_says_nothing_against_a_class_that_its_image_lacks():
    """Without cells in which class 2 is possible, nothing moves its column."""
    seen, truth, possible, weights = cells()
    without = np.where(truth == 2, 0, truth)
    two = np.broadcast_to([True, True, False], possible.shape)
    kernel, offset = linear_probe.fit(seen, without, two, weights, penalty=1e-3)
    assert np.abs(kernel[:, 2]).max() < 1e-5 < 0.1 < np.abs(kernel[:, 1]).max()
    assert np.isfinite(offset).all()
    with pytest.raises(ValueError, match="no cell to learn from"):
        linear_probe.fit(seen[:0], without[:0], two[:0], weights[:0], penalty=1e-3)


def test_weights_and_penalty_count():
    seen, truth, possible, weights = cells()
    every = np.ones_like(possible)
    plain = linear_probe.fit(seen, truth, every, weights, penalty=1e-3)[0]
    rare = linear_probe.fit(seen, truth, every, np.where(truth == 1, 1e-3, 1), penalty=1e-3)
    tight = linear_probe.fit(seen, truth, every, weights, penalty=1.0)[0]
    called = (seen @ rare[0] + rare[1]).argmax(axis=1) == 1
    assert called.mean() < 0.5 * (truth == 1).mean()
    assert np.square(tight).sum() < 0.1 * np.square(plain).sum()


def test_without_frozen_features_a_network_has_no_input_for_it():
    """So that data without features keep the network that they had."""
    shape = CombinerShape(("own", "consensus", "probe"), width=4, walk_steps=2)

    def width(features):
        module = network.build(shape, features=features, key=jax.random.key(0))
        return module.mix.kernel[...].shape[0]

    assert width(4) == width(0) + 3
