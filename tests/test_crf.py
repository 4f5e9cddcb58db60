"""Mean field equals pydensecrf and its own exact form; bad input is refused."""

import dataclasses

import numpy as np
import pytest

from wsss_jax.ops import crf, crf_pydensecrf

GOLDEN = ("2007_000799", "2007_001299")
CASES = {
    "psa_0": ("psa", 0),
    "psa_1": ("psa", 1),
    "psa_10": ("psa", 10),
    "deeplab_10": ("deeplab", 10),
    "irn_1": ("irn", 1),
    "irn_10": ("irn", 10),
}


def assert_same_distribution(ours, theirs):
    """A rounding tie may decide whether one lattice vertex exists, so the maximum is no bar."""
    difference = np.abs(ours - theirs)
    assert difference.mean() <= 1e-5
    assert np.quantile(difference, 0.9999) <= 2e-3
    assert (ours.argmax(-1) == theirs.argmax(-1)).mean() >= 0.9999


def scene(height=24, width=32, k=3, seed=0):
    """Two flat colours with noise, and smooth probabilities that roughly know which is which."""
    rng = np.random.default_rng(seed)
    image = np.full((height, width, 3), 60.0)
    image[:, width // 2 :] = 170
    image += rng.normal(0, 8, image.shape)
    logits = rng.normal(0, 1, (height, width, k)).astype(np.float32)
    logits[:, width // 2 :, 1] += 1.5
    logits[:, : width // 2, 0] += 1.5
    probability = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    return image.clip(0, 255).astype(np.uint8), probability.astype(np.float32)


@pytest.mark.parametrize("name", GOLDEN)
@pytest.mark.parametrize("case", CASES)
def test_refine_equals_the_reference_library(shared, name, case):
    with np.load(shared / "golden/dense_crf" / f"{name}.npz", allow_pickle=False) as stored:
        image, labels, wanted = stored["image"], stored["labels"], stored[case]
        probability = np.ascontiguousarray(stored["probability"].transpose(1, 2, 0))
    preset, iterations = CASES[case]
    settings = dataclasses.replace(crf.PRESETS[preset], iterations=iterations)
    if preset == "irn":
        k = probability.shape[-1]
        ours = crf.refine_labels(image, labels, settings, k=k, gt_prob=0.7)
    else:
        ours = crf.refine(image, probability, settings)
    assert_same_distribution(ours, wanted.transpose(1, 2, 0))


@pytest.mark.skipif(not crf_pydensecrf.available(), reason="pydensecrf is not installed")
@pytest.mark.parametrize("preset", ["psa", "irn"])
def test_refine_equals_the_installed_library(preset):
    image, probability = scene(41, 53, k=4)
    settings = crf.PRESETS[preset]
    theirs = crf.BACKENDS["pydensecrf"](image, probability, settings)
    assert_same_distribution(crf.refine(image, probability, settings), theirs)


def test_bad_input_is_refused():
    image, probability = scene(8, 9)
    settings = crf.PRESETS["psa"]
    for refine in crf.BACKENDS.values():
        with pytest.raises(ValueError, match=r"8x9 .* 7x9"):
            refine(image, probability[1:], settings)
        with pytest.raises(ValueError, match="nan"):
            refine(image, np.full_like(probability, np.nan), settings)
        with pytest.raises(ValueError, match=r"-0\.5"):
            refine(image, probability - np.float32(0.5) - probability.min(), settings)
