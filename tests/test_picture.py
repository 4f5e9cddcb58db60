"""Explaining by hand, and judging methods: a small trained run, its pictures, pages and tables."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from toy_commands import typed

from wsss_jax.batches.augment import Augmentation
from wsss_jax.data.classes import ClassList
from wsss_jax.datasets import synthetic
from wsss_jax.datasets.table import open_dataset
from wsss_jax.explain.learned import Ascent
from wsss_jax.report import overlays
from wsss_jax.report.figures import heat_ramp
from wsss_jax.run.training import Training
from wsss_jax.stages.parts import channels, pictures
from wsss_jax.stages.parts.subject import subject, subject_of
from wsss_jax.stages.train import fit
from wsss_jax.study import judge_maps
from wsss_jax.systems import Classifier, classifier
from wsss_jax.systems.class_loss import ClassLoss


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return synthetic.write(tmp_path_factory.mktemp("scenes"), 12, 0)


@pytest.fixture(scope="module")
def run(scenes, tmp_path_factory):
    model = Classifier("tiny", None, 16, loss=ClassLoss("asymmetric", "logit"))
    view = Augmentation(crop=32, hue=0.0)
    plan = Training(model, view, epochs=1, batch_size=8, sampling="balanced")
    return fit(open_dataset(scenes, split="train"), plan, tmp_path_factory.mktemp("run") / "tiny")


@pytest.fixture(scope="module")
def photographs(scenes, tmp_path_factory):
    """Two scenes, one of them smaller and oblong."""
    folder = tmp_path_factory.mktemp("photographs")
    source = open_dataset(scenes, split="val")
    first, second = (source.image(id) for id in source.ids[:2])
    Image.fromarray(first).save(folder / "first.png")
    Image.fromarray(second[:50]).save(folder / "second.png")
    return folder / "first.png", folder / "second.png"


def test_photographs_become_a_sheet_and_a_page(capsys, run, photographs, tmp_path):
    code, out, err = typed(
        capsys, "explain", run, "--image", *photographs, "--method", "cam", "vanilla_gradient",
        "--labels", "star", "fish", "--side", "64", "--out", tmp_path,
    )  # fmt: skip
    assert code == 0, err
    sheet, page = tmp_path / "explained.png", tmp_path / "explained.html"
    assert out.split()[-2:] == [str(sheet), str(page)]
    with Image.open(sheet) as shown:
        assert shown.width >= 3 * 200 and shown.height > 4 * 100
    text = page.read_text()
    assert "vanilla_gradient" in text and "second" in text and "star 0." in text


def test_methods_may_take_their_features_at_named_layers(capsys, run, photographs, tmp_path):
    wanted = ("explain", run, "--image", photographs[0], "--method", "layer_cam", "--side", "64")
    code, _, err = typed(
        capsys, *wanted, "--layer", "down1", "block1", "--labels", "star", "--out", tmp_path
    )
    assert code == 0, err
    page = (tmp_path / "explained.html").read_text()
    assert "layer_cam at down1" in page and "layer_cam at block1" in page
    code, _, err = typed(capsys, *wanted, "--layer", "blok1", "--out", tmp_path)
    assert code == 1 and "did you mean 'block1'" in err


def test_maps_lie_on_their_photograph_and_peak_at_one(run, photographs):
    asked = subject_of(run)
    showing = pictures.Showing(labels=("kite",), side=64)
    methods = {name: asked.methods[name] for name in ("grad_cam", "smooth_grad_cam_pp")}
    found = pictures.explained(asked, photographs, showing, methods)
    assert [one.photo.shape for one in found] == [(64, 64, 3), (33, 64, 3)]
    for one in found:
        rows, columns = (-(-n // 4) for n in one.photo.shape[:2])
        assert one.classes == ("kite",) and one.probabilities.shape == (1,)
        for scores in one.maps.values():
            assert scores.shape == (rows, columns, 1)
            assert scores.min() >= 0 and scores.max() in (0, pytest.approx(1))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--method", "cam"), "either --data"),
        (("--image", "PHOTO", "--data", "DATA"), "either --data"),
        (("--image", "PHOTO", "--method", "gradcam"), "'grad_cam'"),
        (("--image", "PHOTO", "--labels", "beatle"), "'beetle'"),
        (("--image", "nowhere.jpg"), "no such file"),
        (("--image", "PHOTO", "--side", "4"), "at least 32"),
        (("--data", "DATA", "--method", "cam", "rise"), "--method"),
        (("--data", "DATA", "--layer", "block1"), "with --image alone"),
    ],
)
def test_what_cannot_be_explained_is_one_message(
    capsys, run, scenes, photographs, tmp_path, arguments, says
):
    places = {"PHOTO": photographs[0], "DATA": scenes}
    wanted = [places.get(part, part) for part in arguments]
    code, _, err = typed(capsys, "explain", run, *wanted, "--out", tmp_path / "out")
    assert code == 1 and err.startswith("error: ") and says in err


def test_a_photograph_without_a_find_shows_the_likeliest_class():
    np.testing.assert_array_equal(pictures._found(np.array([0.1, 0.4])), [False, True])
    np.testing.assert_array_equal(pictures._found(np.array([0.6, 0.9])), [True, True])


def test_sheets_wrap_and_refuse_rows_that_differ():
    photo = np.full((40, 60, 3), 128, np.uint8)
    maps = {name: np.linspace(0, 1, 24).reshape(4, 6) for name in "abcd"}
    row = overlays.Row(photo, "dog", "probability 0.90", maps)
    sizes = {}
    for columns in (3, 5):
        content = overlays.sheet([row, row], title="t", caption="c", side=60, columns=columns)
        with Image.open(io.BytesIO(content)) as shown:
            sizes[columns] = shown.size
    assert sizes[3][1] > sizes[5][1]
    with pytest.raises(ValueError, match="first row"):
        other = overlays.Row(photo, "cat", "", {"a": maps["a"]})
        overlays.sheet([row, other], title="t", caption="c")


def test_overlays_are_grey_under_the_heat_scale():
    photo = np.zeros((2, 2, 3), np.uint8)
    shown = overlays.overlay(photo, np.array([[0.0, 1.0], [1.0, 0.0]]))
    wanted = np.rint(overlays.STRENGTH * heat_ramp()[255])
    np.testing.assert_allclose(shown[0, 1], wanted, atol=1)


def test_methods_are_judged_side_by_side(run, scenes):
    asked = subject_of(run)
    source = open_dataset(scenes, split="all")
    methods = {name: asked.methods[name] for name in ("cam", "grad_cam", "layer_cam")}
    settings = judge_maps.Judging(side=32, few={"layer_cam": 5}, curves=4, batch_size=4)
    cards = list(judge_maps.judge(asked, source, methods, settings, ids=source.ids))
    assert [card.photographs for card in cards] == [12, 12, 5]
    cam, grad = (card.numbers for card in cards[:2])
    for name in (*judge_maps.FAITHFUL, *judge_maps.PLACED, *judge_maps.CURVES):
        # With a linear head they are one method.
        np.testing.assert_allclose(cam[name], grad[name], atol=1e-3)
        assert np.isnan(cam[name]) or 0 <= cam[name] <= 1
    assert len(cards[2].drops) < len(cards[0].drops)
    assert judge_maps.wins(cards, "cam")["grad_cam"] == 0
    text = judge_maps.table(cards, judge_maps.PLACED)
    assert text.count("\n") == 4 and "| layer_cam | 5 |" in text


def test_judging_wants_the_classes_it_was_trained_on(run, scenes):
    asked = subject_of(run)._replace(classes=ClassList(("a", "b")))
    source = open_dataset(scenes, split="val")
    with pytest.raises(ValueError, match="trained on"):
        list(judge_maps.judge(asked, source, {}, judge_maps.Judging(), ids=source.ids))


def test_a_class_token_has_its_own_methods_and_those_of_others():
    settings = Classifier("vit_tiny", None, head="class_token")
    state = jax.eval_shape(lambda key: classifier.start(settings, 3, 1, key), jax.random.key(0))
    asked = subject(settings, ClassList(("a", "b", "c")), state)
    pixels, inside = jnp.zeros((1, 32, 32, 3)), jnp.ones((1, 32, 32), bool)
    labels = jnp.array([[True, False, True]])
    on_pixels = {"full_lrp", "vanilla_gradient", "smooth_grad", "integrated_gradients", "rise"}
    others = {"legrad", "getam", "attribution", "grad_cam", "ablation_cam"}
    assert on_pixels | others <= set(asked.methods)
    # One of each kind: of pixels by the attention or the logits, of tokens by either.
    for name in ("full_lrp", "vanilla_gradient", "legrad", "grad_cam"):
        maps = jax.eval_shape(asked.methods[name], asked.weights, pixels, inside, labels)
        grid = 32 if name in on_pixels else 2
        assert maps.shape == (1, grid, grid, 3), name
    assert "score_cam" not in asked.methods and asked.mean == (0.5, 0.5, 0.5)


def test_a_sheet_of_channels_is_written_and_unknown_ones_are_refused(capsys, run, scenes, tmp_path):
    asked = channels.Asked((1, 3), patches=2, side=32, ascent=Ascent(2))
    source = open_dataset(scenes, split="val")
    path = channels.show_channels(subject_of(run), source, tmp_path, asked, 4)
    with Image.open(path) as sheet:
        assert sheet.width >= 480 and sheet.height > 2 * 140
    wrong = ("explain", run, "--data", scenes, "--split", "val", "--out", tmp_path)
    code, _, err = typed(capsys, *wrong, "--channels", "9999")
    assert code == 1 and "no channel 9999; this layer has 0 to" in err
