"""The classifier as a learning problem: its template, its groups, its memory of where it began."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_draw import reference_arrays

from wsss_jax.datasets import synthetic
from wsss_jax.datasets.table import open_dataset
from wsss_jax.run import training
from wsss_jax.run.training import Training
from wsss_jax.systems import classifier
from wsss_jax.systems.classifier import Classifier
from wsss_jax.train.checkpoint import Checkpoints
from wsss_jax.types import Batch

V2 = "mobilenet_v2_1.0_224_quant_float.npz"


def batch(size=32):
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.random((2, size, size, 3), np.float32))
    return Batch(
        images,
        jnp.asarray([[True, False], [False, True]]),
        jnp.ones((2, size, size), bool),
        jnp.ones(2, bool),
    )


def test_a_step_lowers_the_loss_of_its_own_batch():
    system = classifier.make(Classifier("tiny", None, 8), classes=2, steps=20)
    state, step = system.init(jax.random.key(0)), jax.jit(system.step)
    found = []
    for number in range(6):
        state, metrics = step(state, batch(), jax.random.key(number))
        found.append(float(metrics["loss"]))
    assert found[-1] < found[0] and np.isfinite(found).all()
    assert step._cache_size() == 1


def test_rows_that_only_fill_up_do_not_count():
    system = classifier.make(Classifier("tiny", None, 8), classes=2, steps=2)
    state = system.init(jax.random.key(0))
    whole = batch()
    half = Batch(whole.images, whole.labels, whole.inside, jnp.asarray([True, False]))
    one = jax.tree.map(lambda a: a[:1], half)
    step = jax.jit(system.step)
    losses = [float(step(state, b, jax.random.key(0))[1]["loss"]) for b in (half, one)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_the_template_fits_a_run_from_pretrained_weights(tmp_path):
    np.savez(tmp_path / "weights.npz", **reference_arrays("mobilenet_v1")[0])
    settings = Classifier("mobilenet_v1", tmp_path / "weights.npz")
    state = classifier.make(settings, classes=2, steps=5).init(jax.random.key(0))
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state, {})
    gone = Classifier("mobilenet_v1", tmp_path / "weights-that-were-moved.npz")
    found = checkpoints.last(classifier.template(gone, 2))
    assert found is not None
    for one, other in zip(jax.tree.leaves(state), jax.tree.leaves(found[1]), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_run_does_not_care_where_its_weights_lie(tmp_path):
    source = open_dataset(synthetic.write(tmp_path, 4, 0), split="all")
    paths = (tmp_path / "here" / V2, tmp_path / "elsewhere" / V2)
    records = [training.record(Training(Classifier(weights=path)), source, {}) for path in paths]
    assert records[0] == records[1]
