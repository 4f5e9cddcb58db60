"""Every system of the table on a tiny network: it learns, compiles once, and can be read back."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsss_jax import config
from wsss_jax.run.training import Training
from wsss_jax.stages import train
from wsss_jax.systems import (
    SYSTEMS,
    BoxRegression,
    Classifier,
    InterpretableGradient,
    Lfi,
    OcCse,
    PNoc,
    POc,
    PuzzleCam,
    Seam,
    classifier,
    name_of,
)
from wsss_jax.systems.terms import Erasing
from wsss_jax.train.checkpoint import Checkpoints
from wsss_jax.train.optimizers import Optim
from wsss_jax.types import Batch

OWN = Classifier(
    "tiny",
    None,
    8,
    optim=Optim("adamw", learning_rate=1e-3, schedule="constant", weight_decay=0.0),
)
CLASSES, STEPS = 3, 8


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The run folder of an ordinary classifier, as training writes it."""
    folder = tmp_path_factory.mktemp("ordinary")
    state = classifier.make(OWN, classes=CLASSES, steps=1).init(jax.random.key(9))
    Checkpoints(folder / "checkpoint").save(1, state, {})
    model = config.as_json(OWN)
    record = {"system": "vanilla", "settings": {"model": model}, "classes": ["a", "b", "c"]}
    (folder / "settings.json").write_text(json.dumps(record))
    (folder / "finished").write_text("1 steps\n")
    return folder


def settings_of(name, run):
    return {
        "vanilla": OWN,
        "puzzle": PuzzleCam(OWN),
        "occse": OcCse(OWN, Erasing(run, stages=3)),
        "poc": POc(dataclasses.replace(OWN, label_smoothing=0.1), Erasing(run)),
        "pnoc": PNoc(OWN, Erasing(run)),
        "seam": Seam(dataclasses.replace(OWN, dropout=0.5)),
        "interpretable": InterpretableGradient(dataclasses.replace(OWN, dropout=0.2)),
        "lfi": Lfi(OWN, width=8),
        "boxes": BoxRegression(OWN),
    }[name]


def batch(seed=0):
    """Four images whose class is a colour, the last with a margin of padding."""
    rng = np.random.default_rng(seed)
    labels = np.eye(CLASSES, dtype=bool)[[0, 1, 2, 0]]
    labels[3, 1] = True
    images = 0.3 * rng.random((4, 32, 32, 3), np.float32) + 0.5 * labels[:, None, None, :]
    inside = np.ones((4, 32, 32), bool)
    inside[3, 24:] = False
    images = np.where(inside[..., None], images, 0).astype(np.float32)
    boxes = labels[..., None] * np.array([0.2, 0.1, 0.8, 0.5], np.float32)
    fed = Batch(images, labels, inside, np.ones(4, bool), boxes=boxes.astype(np.float32))
    return jax.tree.map(jnp.asarray, fed)


def trees(state):
    return jax.tree.leaves(state)


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_system_learns_in_one_compilation_and_fits_its_template(name, run):
    settings = settings_of(name, run)
    entry = SYSTEMS[name]
    system = entry.make(settings, classes=CLASSES, steps=STEPS)
    state, step = system.init(jax.random.key(0)), jax.jit(system.step)
    before, found = state, []
    for number in range(STEPS):
        state, metrics = step(state, batch(), jax.random.key(number))
        assert all(np.isfinite(value) for value in metrics.values())
        found.append(float(metrics.get("loss_whole", metrics["loss"])))
    assert found[-1] < found[0]
    assert step._cache_size() == 1
    assert int(metrics["skipped"]) == int(metrics["bad_in_a_row"]) == 0
    assert all(np.isfinite(leaf).all() for leaf in trees(state))
    assert any((a != b).any() for a, b in zip(trees(before), trees(state), strict=True))
    template = entry.template(settings, CLASSES)
    assert jax.tree.structure(template) == jax.tree.structure(state)
    assert [(a.shape, a.dtype) for a in trees(template)] == [
        (a.shape, a.dtype) for a in trees(state)
    ]
    explained = entry.explained(settings)

    def explain(weights, fed):
        bound = explained.scorer(explained.structure(CLASSES), *weights)(fed.inside)
        features = bound.features(fed.images)
        return bound.head(features), bound.class_maps(features)

    def own(weights, fed):
        network = explained.structure(CLASSES)
        given = (network, weights, fed.images, fed.inside, fed.labels)
        return explain(weights, fed), {name: one(*given) for name, one in explained.own.items()}

    read = jax.jit(own)
    (logits, maps), others = read(explained.weights(state), batch())
    assert logits.shape == (4, CLASSES) and maps.shape == (4, 4, 4, CLASSES)
    assert all(one.shape == maps.shape and one.any() for one in others.values())
    assert np.isfinite(maps).all() and 0 <= explained.lean <= 1
    if name in ("occse", "poc"):
        for a, b in zip(trees(before.judge), trees(state.judge), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", SYSTEMS)
def test_settings_of_a_system_survive_its_record(name, run):
    settings = Training(settings_of(name, run), epochs=3)
    assert name_of(settings.model) == name
    record = {"system": name, "settings": config.as_json(settings)}
    assert train.training_of(json.loads(json.dumps(record))) == settings


def test_other_objects_are_no_systems():
    with pytest.raises(ValueError, match="Optim is no system's settings"):
        name_of(Optim())


@pytest.mark.parametrize("leaks", [False, True])
def test_only_the_leak_moves_a_second_player_whose_own_loss_is_off(run, leaks):
    settings = PNoc(OWN, Erasing(run), second_weight=0.0, oc_grad_leak=leaks)
    system = SYSTEMS["pnoc"].make(settings, classes=CLASSES, steps=STEPS)
    before = system.init(jax.random.key(0))
    step = jax.jit(system.step)
    after, metrics = step(before, batch(), jax.random.key(1))
    assert float(metrics["loss_second"]) == 0
    moved = [
        any((a != b).any() for a, b in zip(trees(one.params), trees(two.params), strict=True))
        for one, two in ((before.generator, after.generator), (before.ordinary, after.ordinary))
    ]
    assert moved == [True, leaks]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"output_stride": 16}, "output_stride 8, wanted 16"),
        ({"head": "kernel_usage"}, "head 'linear', wanted 'kernel_usage'"),
    ],
)
def test_an_ordinary_classifier_of_another_structure_is_refused(run, change, message):
    settings = OcCse(dataclasses.replace(OWN, **change), Erasing(run))
    with pytest.raises(ValueError, match=message):
        SYSTEMS["occse"].make(settings, classes=CLASSES, steps=1).init(jax.random.key(0))


def test_a_run_that_is_not_there_is_said_to_be_missing(tmp_path):
    settings = OcCse(OWN, Erasing(tmp_path))
    with pytest.raises(ValueError, match="train a plain classifier there first"):
        SYSTEMS["occse"].make(settings, classes=CLASSES, steps=1).init(jax.random.key(0))
    template = SYSTEMS["occse"].template(settings, CLASSES)
    assert trees(template.judge)
