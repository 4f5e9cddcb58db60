"""Other tools' files come as score maps with the right numbers, range, size and kind."""

import io
import re

import numpy as np
import pytest
import toy_priors
from golden_draw import PRIORS, prior_scores, write_priors
from PIL import Image

from wsss_jax.data import stores
from wsss_jax.data.classes import VOC
from wsss_jax.errors import BadFileError, MissingFileError
from wsss_jax.ops.resize import resize
from wsss_jax.priors import external
from wsss_jax.priors.external import READERS, Place, Wanted
from wsss_jax.types import ScoreMaps

SIZE = (9, 14)
CLASSES = (4, 7)
FILES = [name for name in READERS if "store" not in name and name != "instances"]
PLANES = ("msc_seg", "weclip", "array")  # of all classes, so they have no numbers to be wrong
DICTIONARIES = [name for name in FILES if READERS[name].endings[0] == ".npy" and name not in PLANES]


def wanted(classes=CLASSES, *, size=SIZE, grid=SIZE, **more):
    labels = np.isin(np.arange(len(VOC)), classes)
    return Wanted(VOC, labels, size, grid, **more)


def scores(size=SIZE, count=2, seed=0):
    values = np.random.default_rng(seed).random((count, *size), np.float32)
    return values / np.float32(count + 0.1)


def read(folder, layout, *, want=None, id="a"):
    places = [Place("", "_#.png")] if layout == "oaa" else ()
    return external.read_prior(layout, folder, id, want or wanted(), places)


@pytest.mark.parametrize("layout", FILES)
def test_every_layout_gives_back_what_was_written(tmp_path, layout):
    truth = scores()
    toy_priors.write(layout, tmp_path, "a", CLASSES, truth)
    maps, notes, _ = read(tmp_path, layout)
    got = maps.scores.transpose(2, 0, 1)
    assert maps.size == SIZE and maps.kind == READERS[layout].kind and notes == ()
    if READERS[layout].agnostic:
        assert maps.classes.tolist() == [0]
        np.testing.assert_allclose(got, truth[:1], atol=1 / 255)
    elif READERS[layout].hard:
        rows = np.concatenate([np.full_like(truth[:1], 0.3), truth]).argmax(0)
        np.testing.assert_array_equal(got, np.stack([rows == 1, rows == 2]))
    else:
        assert maps.classes.tolist() == list(CLASSES)
        half = layout in ("clipes", "dhr")
        close = {"msc_seg": 1e-5, "weclip": 1e-5, "oaa": 1 / 255}.get(layout, 0)
        expected = truth.astype(np.float16) if half else truth
        np.testing.assert_allclose(got, expected, atol=close, rtol=0)
    np.testing.assert_allclose(maps.peak, maps.scores.max((0, 1)), atol=1e-6)


@pytest.mark.parametrize("layout", FILES)
def test_every_layout_is_reduced_to_the_wanted_grid(tmp_path, layout):
    toy_priors.write(layout, tmp_path, "a", CLASSES, scores())
    maps, _, _ = read(tmp_path, layout, want=wanted(grid=(3, 4)))
    assert maps.scores.shape[:2] == (3, 4) and maps.size == SIZE
    assert np.all((maps.scores >= 0) & (maps.scores <= 1))


@pytest.mark.parametrize("layout", ["irn", "puzzle"])
def test_the_field_that_is_read_does_not_depend_on_the_grid(tmp_path, layout):
    truth = scores()
    toy_priors.write(layout, tmp_path, "a", CLASSES, truth)
    maps, _, _ = read(tmp_path, layout, want=wanted(grid=(3, 4)))
    expected = [resize(one, (3, 4)) for one in truth]
    np.testing.assert_array_equal(maps.scores.transpose(2, 0, 1), expected)
    for grid in ((3, 4), SIZE):
        maps, _, _ = read(tmp_path, layout, want=wanted(grid=grid, field="cam"))
        np.testing.assert_array_equal(maps.scores.transpose(2, 0, 1), truth[:, ::4, ::4])
    with pytest.raises(BadFileError, match="wanted keys and rw"):
        read(tmp_path, layout, want=wanted(field="rw"))


@pytest.mark.parametrize("layout", sorted(READERS))
def test_every_reader_refuses_what_is_no_such_file(tmp_path, layout):
    suffix = "_4.png" if layout == "oaa" else READERS[layout].endings[0]
    (tmp_path / f"a{suffix}").write_bytes(b"nonsense")
    with pytest.raises(BadFileError, match=f"a{suffix}"):
        read(tmp_path, layout)
    with pytest.raises(MissingFileError, match="no file of gone"):
        read(tmp_path, layout, id="gone")
    with pytest.raises(ValueError, match="usable as a file name"):
        read(tmp_path, layout, id="../x")


def test_an_unknown_layout_names_the_nearest(tmp_path):
    with pytest.raises(ValueError, match="did you mean 'saliency_png'"):
        read(tmp_path, "saliency_pgn")


@pytest.mark.parametrize("id", PRIORS)
def test_files_of_the_tools_are_read_bit_by_bit(id, tmp_path):
    root, values = write_priors(tmp_path), prior_scores(id)
    classes, size = PRIORS[id]
    low, high = values.min((1, 2), keepdims=True), values.max((1, 2), keepdims=True)
    masks = np.concatenate([np.full_like(values[:1], 0.35), values]).argmax(0)
    hard = np.stack([masks == n + 1 for n in range(len(classes))])
    expected = dict.fromkeys(("psa_cam", "psa_crf", "irn", "puzzle"), values) | {
        "puzzle_rw": values / values.max(),
        "mctformer": (values - low) / (high - low + np.float32(1e-8)),
        "clipes": values.astype(np.float16),
        "mask_png": hard,
        "mask_palette_png": hard,
    }
    for name, wanted_scores in expected.items():
        layout = name.replace("palette_", "")
        kind = "activation" if name == "psa_crf" else None  # its background is (1 - max) ** 4
        want = wanted(classes, size=size, grid=size, kind=kind)
        prior = external.read_prior(layout, root / name, id, want)
        assert prior.notes == () and prior.maps.classes.tolist() == list(classes)
        got = prior.maps.scores.transpose(2, 0, 1)
        np.testing.assert_array_equal(got, wanted_scores, err_msg=name)


def test_the_background_plane_of_amn_and_the_name_of_orandnet(tmp_path):
    truth = scores()
    plane = np.concatenate([np.ones_like(truth[:1]), truth])
    content = {"keys": np.array(CLASSES), "cam": truth[:, ::4, ::4], "high_res": plane}
    toy_priors.save(tmp_path / "a_1.npy", content)
    maps, _, _ = external.read_prior("irn", tmp_path, "a", wanted(), [Place("", "_1.npy")])
    np.testing.assert_array_equal(maps.scores.transpose(2, 0, 1), truth)


def test_saliency_of_any_size_keeps_its_grid(tmp_path):
    values = np.array([[0, 51], [102, 204]], np.uint8)
    Image.fromarray(values).save(tmp_path / "a.png")
    maps, _, _ = read(tmp_path, "saliency_png", want=wanted(size=(30, 40), grid=(30, 40)))
    assert maps.kind == "probability" and maps.size == (30, 40)
    np.testing.assert_allclose(maps.scores[..., 0], [[0, 0.2], [0.4, 0.8]], rtol=1e-6)
    np.testing.assert_allclose(maps.peak, [0.8], rtol=1e-6)


def test_real_saliency_keeps_its_own_grid(shared):
    root = shared / "data/voc12_animals/saliency_csnet"
    id = min(root.glob("*.png")).stem
    want = wanted(size=(375, 500), grid=(375, 500))
    maps, _, _ = external.read_prior("saliency_png", root, id, want)
    assert maps.scores.shape == (224, 224, 1) and 0.5 < maps.peak[0] <= 1


def flat(tmp_path, content, **more):
    toy_priors.save(tmp_path / "a.npy", content)
    return read(tmp_path, "psa_cam", **more)


def changed(values, at, to):
    values = values.copy()
    values[at] = to
    return values


ONE = scores(count=1)[0]


@pytest.mark.parametrize(
    "item, message",
    [
        (changed(ONE, (2, 3), np.nan), "NaN or infinity"),
        (changed(ONE, (2, 3), np.inf), "NaN or infinity"),
        (ONE.T.copy(), "rows and columns are exchanged"),
        (ONE[:5], r"shape \(5, 14\), wanted the photograph's \(9, 14\), or that divided by 2, 4"),
        (ONE - 3, "scores down to -.*logits"),
        (ONE.astype(complex), "type complex128|type 'c16'"),
        (np.zeros((0, 14), np.float32), "wanted the photograph's"),
        (ONE[None], r"a map of shape \(1, 9, 14\)"),
        (0.5, "a float, wanted a map"),
        (None, "a NoneType, wanted a map"),
        (io.BytesIO(), "_io.BytesIO, wanted a map"),
    ],
)
def test_maps_that_cannot_be_trusted_are_left_out_and_the_others_kept(tmp_path, item, message):
    maps, notes, dropped = flat(tmp_path, {4: item, 7: ONE})
    assert maps.classes.tolist() == [7] and list(dropped) == ["bottle"]
    assert re.search(message, dropped["bottle"]) and dropped["bottle"] in notes[0]
    np.testing.assert_array_equal(maps.scores[..., 0], ONE)
    with pytest.raises(BadFileError, match=message + "|values are no maps") as problem:
        flat(tmp_path, {4: item})
    assert "a.npy" in str(problem.value)


@pytest.mark.parametrize(
    "item, expected, note",
    [
        ((ONE * 255).astype(np.uint8), ONE, "bottle: 8-bit values divided by 255"),
        (ONE * 37, ONE / ONE.max(), r"bottle: divided by its maximum 3\d"),
        (ONE * np.float64(1e300), ONE / ONE.max(), "bottle: divided by its maximum"),
        (ONE > 0.5, ONE > 0.5, None),
        (ONE.astype(">f8"), ONE, None),
        (changed(ONE, (0, 0), -1e-6), changed(ONE, (0, 0), 0), None),
    ],
)
def test_what_can_be_put_right_is_told(tmp_path, item, expected, note):
    maps, notes, _ = flat(tmp_path, {4: item, 7: ONE})
    np.testing.assert_allclose(
        maps.scores[..., 0], expected, atol=1 / 255 if note else 0, rtol=1e-6
    )
    assert notes == () if note is None else re.fullmatch(f"{note}.*", notes[0])
    if note and "maximum" in note:
        assert float(maps.peak[0]) == pytest.approx(
            min(float(item.max()), float(np.finfo(np.float32).max)), rel=1e-6
        )


def test_probabilities_above_one_are_refused_not_scaled(tmp_path):
    toy_priors.save(tmp_path / "a.npy", {0: ONE, 5: ONE * 2})
    with pytest.raises(BadFileError, match="do not sum to 1"):
        read(tmp_path, "psa_crf")
    toy_priors.save(tmp_path / "a.npy", {5: ONE * 2})
    with pytest.raises(BadFileError, match="wanted probabilities up to 1"):
        read(tmp_path, "psa_crf")


def test_classes_that_the_image_does_not_show(tmp_path):
    maps, notes, _ = flat(tmp_path, {4: ONE, 9: ONE})
    assert maps.classes.tolist() == [4] and maps.scores.shape[-1] == 1
    assert notes == (
        "left out class 9, which the image's labels do not have",
        "no map of cat",
    )
    with pytest.raises(BadFileError, match=r"class numbers 9, 11, .* labels are 4, 7 in this lay"):
        flat(tmp_path, {9: ONE, 11: ONE})
    with pytest.raises(BadFileError, match="another image or data set"):
        flat(tmp_path, {4: ONE}, want=wanted(()))


@pytest.mark.parametrize("layout", DICTIONARIES)
@pytest.mark.parametrize("shift", [-1, 1])
def test_a_numbering_off_by_one_is_named_with_its_mend(tmp_path, layout, shift):
    if READERS[layout].agnostic:
        pytest.skip("one map of no class has no numbering")
    truth = scores()
    toy_priors.write(layout, tmp_path, "a", [n + shift for n in CLASSES], truth)
    first = READERS[layout].first + shift
    with pytest.raises(BadFileError, match=f"off by one. --first-class {first} would fit"):
        read(tmp_path, layout)
    maps, notes, _ = read(tmp_path, layout, want=wanted(first=first))
    assert maps.classes.tolist() == list(CLASSES) and notes == ()


def test_an_image_without_classes_has_an_empty_record(tmp_path):
    maps, notes, _ = flat(tmp_path, {}, want=wanted((), grid=(3, 4)))
    assert maps.scores.shape == (3, 4, 0) and notes == ()


@pytest.mark.parametrize(
    "content, message",
    [
        ({"keys": np.array([4, 7]), "hr_cam": scores()}, "fields keys, hr_cam, wanted keys and hi"),
        ({"keys": np.array([4, 7, 9, 11]), "high_res": scores()}, "4 keys for maps of shape"),
        ({"keys": np.array([4.0, 7.0]), "high_res": scores()}, "keys of shape .* float64"),
        ({"keys": np.array([4, 4]), "high_res": scores()}, "repeat"),
        ({"high_res": scores()}, "wanted keys"),
        ({"keys": np.array([4, 7]), "high_res": scores()[0]}, "2 keys for maps of shape"),
        ({"keys": np.array([], int), "high_res": 5}, "high_res is a int, wanted maps"),
        ({4: ONE}, "fields 4, wanted keys and high_res or cam"),
    ],
)
def test_fields_that_do_not_belong_together_are_named(tmp_path, content, message):
    toy_priors.save(tmp_path / "a.npy", content)
    with pytest.raises(BadFileError, match=message):
        read(tmp_path, "irn")


def picture(tmp_path, values, mode="L"):
    Image.fromarray(np.asarray(values, np.uint8)).convert(mode).save(tmp_path / "a.png")


def test_masks_are_checked_before_maps_are_made(tmp_path):
    picture(tmp_path, np.full((14, 9), 5))
    with pytest.raises(BadFileError, match="exchanged"):
        read(tmp_path, "mask_png")
    picture(tmp_path, np.full(SIZE, 200))
    with pytest.raises(BadFileError, match="value 200, but 20 classes; a saliency map"):
        read(tmp_path, "mask_png")
    Image.new("RGB", SIZE[::-1], (128, 0, 0)).save(tmp_path / "a.png")
    with pytest.raises(BadFileError, match=r"colours of classes \(1 of them.*segs"):
        read(tmp_path, "mask_png")


def test_unknown_pixels_of_a_mask_favour_nobody_and_absent_classes_go(tmp_path):
    values = np.zeros(SIZE)
    values[0], values[1], values[2], values[3] = 5, 8, 255, 12
    picture(tmp_path, values)
    maps, notes, _ = read(tmp_path, "mask_png")
    assert maps.classes.tolist() == [4, 7] and "left out class 11" in notes[0]
    column = maps.scores[:, 0]
    np.testing.assert_allclose(column[:5], [[1, 0], [0, 1], [0.25, 0.25], [0, 0], [0, 0]])


@pytest.mark.parametrize(
    "layout", ["psa_cam", "clipes", "irn", "mask_png", "saliency_png", "store"]
)
def test_a_file_cut_at_any_kilobyte_is_one_error(tmp_path, layout):
    size = (60, 70)
    want = wanted(size=size, grid=(15, 18))
    if layout == "store":
        folder = own(tmp_path, size)
    else:
        folder = tmp_path
        toy_priors.write(layout, folder, "a", CLASSES, scores(size))
    path = folder / f"a{'.npz' if layout == 'store' else READERS[layout].endings[0]}"
    whole = path.read_bytes()
    read(folder, layout, want=want)
    for end in range(0, len(whole) - 12, 1024):  # a PNG without its last chunk is whole
        path.write_bytes(whole[:end])
        with pytest.raises(BadFileError, match=path.name):
            read(folder, layout, want=want)


def own(tmp_path, size=SIZE):
    store = stores.create(tmp_path / "own", holds="scores", classes=VOC.names, made_by={})
    values, peak = scores(size).transpose(1, 2, 0), np.array([3.0, 7.0], np.float32)
    store.put_scores("a", ScoreMaps(values, np.array(CLASSES, np.int32), size, peak))
    return tmp_path / "own/scores"


def test_our_own_records_keep_their_peaks(tmp_path):
    maps, _, _ = read(own(tmp_path), "store", want=wanted((7,)))
    assert maps.peak.tolist() == [7] and maps.classes.tolist() == [7]
    np.testing.assert_allclose(maps.scores[..., 0], scores()[1], atol=1e-3)


def test_our_own_records_are_of_the_same_photograph(tmp_path):
    with pytest.raises(BadFileError, match=r"made for a photograph of \(9, 14\), this one is \(9,"):
        read(own(tmp_path), "store", want=wanted(size=(9, 15)))


def test_an_archive_that_unpacks_to_gigabytes_is_refused_from_its_header(tmp_path):
    folder = own(tmp_path)
    zeros = np.zeros((3000, 1000, 2), np.float16)
    np.savez_compressed(
        folder / "a.npz", scores=zeros, classes=np.zeros(2, np.int16), peak=np.zeros(2, "f4"),
        size=np.array(SIZE, np.int32),
    )  # fmt: skip
    assert (folder / "a.npz").stat().st_size < 100_000
    with pytest.raises(BadFileError, match=r"scores of shape \(3000, 1000, 2\) for a photograph"):
        read(folder, "store")


def test_a_file_of_texts_is_told_in_words(tmp_path):
    np.save(tmp_path / "a.npy", np.array(["cat", "dog"]))
    with pytest.raises(BadFileError, match="a list, wanted numbers or a dictionary"):
        external.read_maps(tmp_path / "a.npy")
