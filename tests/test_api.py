"""Parts by hand: right answers on small arrays, and advice that works for wrong calls."""

import numpy as np
import pytest
from PIL import Image

import wsss_jax as wj
from wsss_jax.config import lookup
from wsss_jax.ops.affinity import Affinity, stencil

IMAGE = np.random.default_rng(0).integers(0, 256, (8, 12, 3), np.uint8)
PROBABILITIES = np.full((8, 12, 2), 0.5, np.float32)


@pytest.mark.parametrize(
    ("image", "probabilities", "advice"),
    [
        (IMAGE, PROBABILITIES.transpose(2, 0, 1), "move axis 0 to the end"),
        (IMAGE.transpose(2, 0, 1), PROBABILITIES, "move axis 0 to the end"),
        (IMAGE / 255, PROBABILITIES, r"if it is in \[0, 1\]: \(255 \* image\)"),
        (IMAGE.astype(float), PROBABILITIES, r"if in 0..255: image.round\(\)"),
        (IMAGE, (PROBABILITIES * 255).astype(np.uint8), r"divide by 255"),
        (IMAGE, PROBABILITIES - 1, "take a softmax"),
        (IMAGE, PROBABILITIES[..., 0], r"np.eye\(k\)\[probabilities\]"),
        (IMAGE, PROBABILITIES[:4], "enlarge them first"),
        (IMAGE[..., 0], PROBABILITIES, "of a grey one"),
        (np.dstack([IMAGE, IMAGE[..., :1]]), PROBABILITIES, "without the alpha channel"),
        ("a.jpg", PROBABILITIES, r"image is a str, wanted pixels"),
        (IMAGE, None, "probabilities are a NoneType"),
    ],
    ids=range(12),
)
def test_a_crf_of_wrong_arrays_says_what_to_write(image, probabilities, advice):
    with pytest.raises(ValueError, match=advice):
        wj.dense_crf(image, probabilities)


def test_what_does_nothing_together_is_refused(tmp_path):
    with pytest.raises(wj.UserError, match="are given in its settings"):
        wj.train_classifier("data", "run", system=object(), weights="nowhere.npz")
    logits = wj.ScoreMaps(
        np.zeros((2, 2, 1), np.float32),
        np.zeros(1, np.int32),
        (2, 2),
        np.ones(1, np.float32),
        "logit",
    )
    with pytest.raises(wj.UserError, match="maps are logits"):
        wj.otsu_threshold(logits)


def test_a_preset_that_is_not_there_gets_its_neighbour():
    with pytest.raises(wj.UserError, match="did you mean 'psa'"):
        wj.dense_crf(IMAGE, PROBABILITIES, "pas")


def test_a_walk_along_a_given_affinity_goes_nowhere_without_pairs_and_needs_something_to_follow():
    scores = np.random.default_rng(1).random((4, 5, 2), np.float32)
    none = Affinity(np.zeros((len(stencil(2)), 4, 5), np.float32), 2)
    np.testing.assert_allclose(wj.random_walk(scores, affinity=none), scores, atol=1e-5)
    with pytest.raises(ValueError, match=r"give image= .colours. or affinity="):
        wj.random_walk(scores)
    with pytest.raises(ValueError, match=r"wanted ops\.affinity\.Affinity"):
        wj.random_walk(scores, affinity=np.zeros((2, 4, 5)))


def maps_of(value, *classes):
    scores = np.full((2, 2, len(classes)), value, np.float32)
    peak = scores.max(axis=(0, 1))
    return wj.ScoreMaps(scores, np.array(classes, np.int32), (4, 4), peak)


def test_systems_that_know_other_classes_are_fused_over_all_classes():
    fused = wj.fuse([maps_of(0.2, 1, 3), maps_of(0.6, 3)], rule="mean")
    assert fused.classes.tolist() == [1, 3]
    np.testing.assert_allclose(fused.scores[0, 0], [0.2, 0.4], rtol=1e-6)


@pytest.mark.parametrize(
    ("maps", "advice"),
    [
        (np.zeros((2, 2, 1)), "give a list"),
        ([np.zeros((2, 2, 1)), np.zeros((3, 2, 1))], "maps of different shapes"),
        ([np.full((2, 2, 1), 7.0)], "divide by the maximum"),
        ([np.zeros((2, 2, 1)), maps_of(0.5, 0)], "give all arrays"),
    ],
    ids=range(4),
)
def test_maps_that_do_not_go_together_are_refused(maps, advice):
    with pytest.raises(ValueError, match=advice):
        wj.fuse(maps)


def written(folder, **masks):
    folder.mkdir()
    for name, values in masks.items():
        Image.fromarray(np.array(values, np.uint8)).save(folder / f"{name}.png")
    return str(folder)


def test_two_folders_of_masks_are_judged_by_file_name(tmp_path):
    truth = written(tmp_path / "truth", a=[[0, 1], [1, 255]], b=[[2, 2], [0, 0]], c=[[0, 0]])
    guess = written(tmp_path / "guess", a=[[0, 1], [0, 0]], b=[[2, 1], [0, 0]])
    found = wj.evaluate(guess, truth, classes=3)
    assert found.counts.tolist() == [[3, 0, 0], [1, 1, 0], [0, 1, 1]]
    np.testing.assert_allclose(found.iou, [3 / 4, 1 / 3, 1 / 2])
    assert found.mean == pytest.approx(np.mean([3 / 4, 1 / 3, 1 / 2]))
    assert found.ids == ("a", "b") and found.without_prediction == ("c",)
    named = wj.evaluate(guess, truth, classes=["cat", "dog"])
    assert named.per_class["dog"] == 0.5 and named.names[0] == "background"
    with pytest.raises(wj.UserError, match=r"1 of 3 masks have no true mask .* \(c\)"):
        wj.evaluate(truth, guess, classes=3)
    with pytest.raises(wj.UserError, match=r"b\.png: "):
        wj.evaluate(guess, truth, classes=2)
    with pytest.raises(wj.UserError, match="no such folder"):
        wj.evaluate(str(tmp_path / "none"), truth, classes=3)


def test_files_of_other_tools_are_told_apart_by_their_fields(tmp_path):
    low, high = np.full((2, 3), 0.25, np.float32), np.full((2, 3), 0.75, np.float32)
    for name, content in {
        "puzzle": {"keys": np.array([0, 5]), "cam": high[None], "hr_cam": high[None]},
        "psa_cam": {4: high},
        "psa_crf": {0: low, 5: high},
    }.items():
        np.save(tmp_path / f"{name}.npy", content)
        found = wj.read_maps(tmp_path / f"{name}.npy")
        assert found.classes.tolist() == [4] and float(found.scores.max()) == 0.75, name
    np.save(tmp_path / "x.npy", {"weights": low})
    with pytest.raises(wj.UserError, match="fields weights, which no known layout has"):
        wj.read_maps(tmp_path / "x.npy")
    with pytest.raises(wj.UserError, match="class number 5, but 3 classes"):
        wj.read_maps(tmp_path / "puzzle.npy", classes=["a", "b", "c"])


GRID = np.random.default_rng(2).random((8, 10, 3)).astype(np.float32)
SCENE = np.zeros((16, 20, 3), np.uint8)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: wj.random_walk(np.moveaxis(GRID, -1, 0), image=SCENE), "move axis 0 to the end"),
        (lambda: wj.random_walk(GRID.swapaxes(0, 1), image=SCENE), "wanted a grid .* of the image"),
        (lambda: wj.random_walk(GRID, image=SCENE, beta=np.nan), "beta is nan; give a number"),
        (lambda: wj.random_walk(GRID, image=SCENE, radius=0), "radius is 0; give a whole number"),
        (lambda: wj.random_walk(GRID, image=SCENE, steps=-1), "steps is -1; give a whole number"),
        (lambda: wj.dense_crf(SCENE, np.ones((20, 16, 2))), "exchange the rows and columns"),
        (lambda: wj.dense_crf(SCENE, np.full((16, 20, 2), np.inf)), "hold NaN or infinity"),
        (lambda: wj.dense_crf(SCENE, np.ma.ones((16, 20, 2))), r"probabilities\.filled\(0\)"),
        (lambda: wj.fuse([GRID, GRID], available=[[0.5] * 3] * 2), "True or False for each pair"),
        (lambda: wj.fuse([maps_of(0.2, 1)], available=[[True]]), "leave available out"),
        (lambda: wj.fuse([maps_of(0.2, 1), maps_of(9.0, 1)]), "scores from 9 to 9"),
        (lambda: wj.fuse([maps_of(np.nan, 1)]), "hold NaN or infinity"),
        (lambda: wj.fuse([maps_of(0.1, 1, 1)]), "a class twice"),
        (lambda: wj.masks_of(GRID * 255), r"wanted \[0, 1\]; divide by the maximum"),
        (lambda: wj.otsu_threshold(GRID * 255), r"wanted \[0, 1\]; divide by the maximum"),
        (lambda: wj.masks_of(np.zeros((2, 2, 300))), "at most 254 classes"),
        (lambda: wj.masks_of(GRID, np.nan), "threshold is nan"),
        (lambda: wj.evaluate(GRID, GRID, classes=3), "class indices .* of whole numbers"),
        (lambda: wj.evaluate(*[np.full((2, 2), 257)] * 2, classes=3), "goes from 257 to 257"),
        (lambda: wj.evaluate(*[np.zeros((2, 2))] * 2, classes="cat"), "classes is 'cat', wanted"),
        (lambda: wj.evaluate(SCENE, SCENE, classes=["background", "cat"]), "leave it out"),
        (lambda: wj.network("Tiny "), "unknown backbone"),
    ],
)  # fmt: skip
def test_a_call_that_could_be_meant_otherwise_is_refused_with_advice(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_masks_of_any_whole_numbers_and_files_are_judged(tmp_path):
    mask = np.array([[0, 1, 1], [1, 0, 0]])
    assert wj.evaluate(mask, mask > 0, classes=2).mean == 1
    for folder, suffix, dtype in (("guess", ".PNG", np.uint16), ("truth", ".tif", np.uint8)):
        (tmp_path / folder).mkdir()
        Image.fromarray(mask.astype(dtype)).save(tmp_path / folder / f"a{suffix}")
    found = wj.evaluate(tmp_path / "guess", tmp_path / "truth", classes=2)
    assert found.mean == 1 and found.ids == ("a",)


def test_a_name_of_no_text_is_unknown_like_any_other():
    with pytest.raises(wj.UserError, match="unknown fusion rule None"):
        lookup(wj.FUSIONS, None, "fusion rule")
