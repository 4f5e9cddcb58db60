"""Systems through the stages: recipes, heads, explanations, and what stops a training."""

import dataclasses
import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsss_jax.batches.augment import Augmentation
from wsss_jax.config import as_json
from wsss_jax.datasets import synthetic
from wsss_jax.datasets.table import open_dataset
from wsss_jax.models import heads
from wsss_jax.recipes.recipe import Recipe
from wsss_jax.run import folders
from wsss_jax.run.training import Training
from wsss_jax.stages.explain import Explanation, explain
from wsss_jax.stages.train import fit, training_of
from wsss_jax.systems import SYSTEMS, Classifier, OcCse, Seam, classifier, name_of
from wsss_jax.systems.terms import Erasing

EXPERIMENTS = Path(__file__).resolve().parents[1] / "experiments"
OWN = Classifier("tiny", None, 8)
VIEW = Augmentation(crop=32, long_side=(32, 40), hue=0.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    scenes = synthetic.Scenes(size=40)
    return synthetic.write(tmp_path_factory.mktemp("scenes"), 36, 0, settings=scenes)


@pytest.fixture(scope="module")
def source(folder):
    return open_dataset(folder, split="all")


@pytest.mark.parametrize(
    ("name", "system"),
    [
        ("voc12_vanilla", "vanilla"),
        ("voc12_puzzle", "puzzle"),
        ("voc12_occse", "occse"),
        ("voc12_poc", "poc"),
        ("voc12_pnoc", "pnoc"),
        ("voc12_seam", "seam"),
        ("coco14_pnoc", "pnoc"),
    ],
)
def test_the_papers_recipes_say_all_their_settings(name, system):
    recipe = runpy.run_path(str(EXPERIMENTS / f"{name}.py"))["recipe"]
    made = recipe(Path("data"), Path("weights"))
    assert isinstance(made, Recipe) and made.name == name
    training = made.systems[system]
    assert name_of(training.model) == system
    assert training_of({"system": system, "settings": as_json(training)}) == training
    assert training.augmentation.crop % 16 == 0
    with pytest.raises(ValueError, match="--weights"):
        recipe(Path("data"), None)


def test_a_judged_system_is_trained_and_explained_after_its_judge(source, tmp_path):
    plain = Training(OWN, VIEW, epochs=1, batch_size=16)
    judge = fit(source, plain, tmp_path / "judge")
    guided = Training(OcCse(OWN, Erasing(judge)), VIEW, epochs=1, batch_size=16)
    run = fit(source, guided, tmp_path / "guided")
    (judge / "finished").unlink()  # a finished run does not need its judge's any more
    assert fit(source, guided, tmp_path / "guided") == run
    ids = source.ids[:2]
    maps = explain(run, source, tmp_path / "maps", Explanation(scales=(1.0,)), ids=ids)
    assert maps.made_by["run"] == folders.ending(run) != ""
    assert not maps.missing(ids)


def test_a_class_that_no_image_shows_stops_training_with_its_name(folder, source, tmp_path):
    lost = source.classes.names[0]
    few = tuple(id for id in source.ids if not source.labels(id)[0])
    partial = open_dataset(folder, split="all", ids=few)
    training = Training(OWN, VIEW, epochs=1, batch_size=len(few))
    with pytest.raises(ValueError, match=f"no image shows {lost}"):
        fit(partial, training, tmp_path / "run")
    with pytest.raises(ValueError, match="imageless"):
        fit(partial, training, tmp_path / "other", imageless=("nothing",))


def test_kernel_usage_gates_by_a_softmax_over_classes():
    kernel = jnp.asarray([[1.0, 1.0], [0.0, np.log(3.0)]])
    gated = heads.kernel_usage(kernel)
    np.testing.assert_allclose(gated, [[0.5, 0.5], [0, 0.75 * np.log(3.0)]], rtol=1e-6)
    np.testing.assert_allclose(heads.kernel_usage_scaled(kernel), 2 * gated, rtol=1e-6)


@pytest.mark.parametrize("head", heads.KERNELS)
def test_class_maps_use_the_kernel_that_logits_use(head):
    module = classifier.module_of(dataclasses.replace(OWN, head=head), 3, jax.random.key(0))
    features = jnp.asarray(np.random.default_rng(0).random((2, 4, 4, 128), np.float32))
    mean = module.class_maps(features).mean(axis=(1, 2))
    np.testing.assert_allclose(mean, module.head(features), rtol=1e-4, atol=1e-5)


def test_a_class_token_is_learned_and_explained_by_attention():
    settings = Classifier("vit_tiny", None, 16, head="class_token")
    explained = SYSTEMS["vanilla"].explained(settings)
    assert explained.attentive and explained.lean == 0.5
    state = SYSTEMS["vanilla"].template(settings, 3)
    inside = jax.ShapeDtypeStruct((2, 32, 48), bool)
    images = jax.ShapeDtypeStruct((2, 32, 48, 3), jnp.float32)

    def record(weights, inside, images):
        bound = explained.scorer(explained.structure(3), *weights)(inside)
        return bound.record(images)[0]

    logits = jax.eval_shape(record, (state.params, state.stats), inside, images)
    assert logits.shape == (2, 3)


def test_heads_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="did you mean 'kernel_usage'"):
        classifier.structure(dataclasses.replace(OWN, head="kernel_usag"), 3)
    with pytest.raises(ValueError, match="needs a vision transformer"):
        classifier.structure(dataclasses.replace(OWN, head="class_token"), 3)
    with pytest.raises(ValueError, match="does not have"):
        Seam(Classifier("vit_tiny", None, 16, head="class_token"))
