"""Files as the tools of the field write them: each kind is read, or refused with the reason."""

import json

import numpy as np
import pytest
import toy_priors
from PIL import Image
from test_layouts import SIZE, scores, survey

from wsss_jax.data.classes import VOC
from wsss_jax.errors import BadFileError
from wsss_jax.priors import external
from wsss_jax.priors.external import Wanted, read_file, read_maps
from wsss_jax.run import left_out
from wsss_jax.stages.import_maps import Import, import_priors

TABLE = {"2007_000504": (9, 14)}
ID = "2007_000504"
COW = scores(1)[0]


def wanted(classes=(9, 14), size=SIZE):
    return Wanted(VOC, np.isin(np.arange(len(VOC)), classes), size, size)


def flat(tmp_path, content):
    toy_priors.save(tmp_path / "a.npy", content)
    return read_file("psa_cam", tmp_path / "a.npy", wanted())


def seam(positive):
    """infer_SEAM.py: the formula that leaves pixels below 0."""
    low, high = positive.min(), positive.max()
    positive = np.where(positive < low + 1e-5, 0, positive)
    return ((positive - low - 1e-5) / (high - low + 1e-5)).astype(np.float32)


def test_negative_pixels_of_seam_are_set_to_0(tmp_path):
    above = COW / 5 + 2  # minimum > 0: the pixel at the minimum ends at -10
    made = seam(above)
    assert made.min() < -5 and (made < 0).sum() == 1
    prior = flat(tmp_path, {9: made, 14: COW})
    assert prior.maps.classes.tolist() == [9, 14] and not prior.dropped
    np.testing.assert_array_equal(prior.maps.scores[..., 0], np.maximum(made, 0))
    assert "cow: 1 pixel(s) below 0, down to -" in prior.notes[0]


def test_a_class_of_seam_that_never_fires_is_an_empty_map(tmp_path):
    made = seam(np.zeros(SIZE))
    assert (made == -1).all()
    prior = flat(tmp_path, {9: made, 14: COW})
    assert prior.maps.classes.tolist() == [9, 14] and prior.maps.peak[0] == 0
    assert not prior.maps.scores[..., 0].any()
    assert "cow: -1 everywhere: the class never fires" in prior.notes[0]


@pytest.mark.parametrize("logit", [COW * 8 - 4, COW * 2 - 1, np.where(COW < 0.5, -3 * COW, COW)])
def test_logits_are_no_maps_of_seam(tmp_path, logit):
    prior = flat(tmp_path, {9: logit.astype(np.float32), 14: COW})
    assert "logits?" in prior.dropped["cow"] and prior.maps.classes.tolist() == [14]


def test_logits_become_shares_of_background_and_the_classes_of_the_image(tmp_path):
    """Softmax over planes 0, 10 and 15 of 21; the largest plane of all, an absent class, is out."""
    logits = np.random.default_rng(0).normal(0, 2, (2, 21, 4, 6)).astype(np.float32)
    logits[:, 3] += 50
    toy_priors.save(tmp_path / "a.npy", {"msc_seg": logits})
    maps = read_file("msc_seg", tmp_path / "a.npy", wanted()).maps
    chosen = np.exp(logits.mean(0)[[0, 10, 15]].astype(np.float64))
    expected = (chosen / chosen.sum(0))[1:]
    np.testing.assert_allclose(maps.scores.transpose(2, 0, 1), expected, rtol=1e-4)
    assert maps.kind == "probability" and maps.classes.tolist() == [9, 14] and maps.size == SIZE
    toy_priors.save(tmp_path / "a.npy", {"msc_seg": logits[:, :20]})
    with pytest.raises(BadFileError, match=r"a\.npy.*20 planes, wanted 21"):
        read_file("msc_seg", tmp_path / "a.npy", wanted())
    turned = logits.transpose(0, 1, 3, 2)
    toy_priors.save(tmp_path / "a.npy", {"msc_seg": turned})
    with pytest.raises(BadFileError, match="rows and columns are exchanged"):
        read_file("msc_seg", tmp_path / "a.npy", wanted())


def test_plain_arrays_with_and_without_background(tmp_path):
    planes = np.random.default_rng(0).random((21, *SIZE), np.float32)
    np.save(tmp_path / "a.npy", planes[1:])
    np.savez(tmp_path / "b.npz", cam=planes)
    for name in ("a.npy", "b.npz"):
        maps = read_file("array", tmp_path / name, wanted()).maps
        np.testing.assert_array_equal(maps.scores.transpose(2, 0, 1), planes[[10, 15]])
    np.save(tmp_path / "a.npy", planes.transpose(1, 2, 0))
    with pytest.raises(BadFileError, match=r"wanted 20 planes.*save it as \(classes, h, w\)"):
        read_file("array", tmp_path / "a.npy", wanted())


@pytest.mark.parametrize(
    "keys, message",
    [
        (np.isin(np.arange(20), (9, 14)), r"as irn: keys of shape \(20,\) and type bool"),
        (np.array([9.0, 14.0]), r"as irn: keys of shape \(2,\) and type float64"),
        (np.array([[9, 14]]), r"as irn: keys of shape \(1, 2\) and type int64"),
        (None, "as irn: keys are a NoneType, wanted class numbers"),
        (np.array([9, 14, 3, 4]), "as irn: 4 keys for maps of shape"),
    ],
)
def test_auto_tells_the_reason_of_the_layout_whose_fields_a_file_has(tmp_path, keys, message):
    content = {"keys": keys, "cam": scores(2)[:, ::4, ::4], "high_res": scores(2)}
    toy_priors.save(tmp_path / f"{ID}.npy", content)
    with pytest.raises(BadFileError, match=message):
        survey(tmp_path, TABLE)


def grey(path, values, **more):
    Image.fromarray(np.asarray(values, np.uint8)).save(path, **more)


def test_a_picture_of_0_and_1_may_be_saliency_or_a_mask(tmp_path):
    values = np.zeros(SIZE)
    values[2:5] = 1
    grey(tmp_path / f"{ID}.png", values)
    with pytest.raises(BadFileError, match=r"may be mask_png or saliency_png.*give --layout"):
        survey(tmp_path, TABLE)
    with pytest.raises(BadFileError, match=r'may be .* give layout="mask_png" or layout="saliency'):
        read_maps(tmp_path / f"{ID}.png", VOC)
    maps = read_maps(tmp_path / f"{ID}.png", VOC, "saliency_png")
    np.testing.assert_array_equal(maps.scores[..., 0], values)


LEVELS = (COW * 255).astype(np.uint8)


@pytest.mark.parametrize(
    "name, picture, close",
    [
        ("a.png", Image.fromarray((COW * 65535).astype(np.uint16)), 1e-4),
        ("a.png", Image.fromarray(LEVELS).convert("RGB"), 1 / 255),
        ("a.png", Image.fromarray(LEVELS).convert("LA"), 1 / 255),
        ("a.png", Image.fromarray(LEVELS).convert("RGBA"), 1 / 255),
        ("a.jpg", Image.fromarray(np.full(SIZE, 204, np.uint8)), 2 / 255),
    ],
    ids=["16 bits", "RGB", "grey and alpha", "RGBA", "JPEG"],
)
def test_saliency_of_every_depth_is_read(tmp_path, name, picture, close):
    picture.save(tmp_path / name)
    maps = read_maps(tmp_path / name)
    expected = np.full(SIZE, 0.8) if name == "a.jpg" else COW
    np.testing.assert_allclose(maps.scores[..., 0], expected, atol=close)


def test_colours_are_named_with_the_file_that_helps(tmp_path):
    heat = np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(heat).save(tmp_path / f"{ID}.png")
    with pytest.raises(BadFileError, match=r"heat map.*infer_cam.*wanted the \.npy"):
        survey(tmp_path, TABLE)
    classes = np.zeros((40, 40, 3), np.uint8)
    classes[10:] = 128, 0, 0
    (tmp_path / f"{ID}.png").unlink()
    Image.fromarray(classes).save(tmp_path / f"{ID}_cmap.png")
    for read in (lambda: survey(tmp_path, TABLE), lambda: read_maps(tmp_path / f"{ID}_cmap.png")):
        with pytest.raises(BadFileError, match=r"colours of classes.*cmap.*prediction"):
            read()


@pytest.mark.parametrize(
    "name", ["{}.npy", "{}.jpg.npy", "{}_cam.npy", "{}_1.npy", "train/{}.npy", "x/y/{}_cam.npy"]
)
def test_files_are_found_below_the_folder_and_with_more_in_the_name(tmp_path, name):
    source, folder = toy_priors.Labelled(TABLE, SIZE), tmp_path / "in"
    path = folder / name.format(ID)
    path.parent.mkdir(parents=True)
    toy_priors.save(path, {9: COW, 14: COW})
    path.with_suffix("").rename(path) if not path.exists() else None
    store = import_priors(Import(stride=1), folder, source, tmp_path / "out", ids=source.ids)
    np.testing.assert_allclose(store.get_scores(ID).scores[..., 1], COW, atol=1e-3)


def test_two_files_of_an_image_are_told_apart_by_suffix_or_folder(tmp_path):
    for name in (f"{ID}_cam.npy", f"{ID}_crf.npy"):
        toy_priors.save(tmp_path / name, {9: COW, 14: COW})
    with pytest.raises(BadFileError, match=r"--suffix _cam\.npy or --suffix _crf\.npy"):
        survey(tmp_path, TABLE)
    assert survey(tmp_path, TABLE, suffix="_cam.npy").places[0].suffix == "_cam.npy"
    with pytest.raises(BadFileError, match=r"ends in _x\.npy; there is _cam\.npy, _crf"):
        survey(tmp_path, TABLE, suffix="_x.npy")


def test_a_bad_class_is_left_out_and_listed(tmp_path, capsys):
    source = toy_priors.Labelled(TABLE, SIZE)
    toy_priors.write("psa_cam", tmp_path / "in", ID, (9, 14), np.stack([COW * np.nan, COW]))
    with left_out.recorded() as record:
        store = import_priors(Import(), tmp_path / "in", source, tmp_path / "out", ids=source.ids)
    assert record.exit_code() == left_out.CODE
    assert record.line() == "left out: out 1 map(s); the reasons are above"
    with left_out.recorded() as again:  # nothing is left to do, and the map is still not there
        import_priors(Import(), tmp_path / "in", source, tmp_path / "out", ids=source.ids)
    assert again.line() == record.line()
    assert store.get_scores(ID).classes.tolist() == [14]
    dropped = external.dropped_classes(store.folder)
    assert list(dropped) == [ID] and "NaN or infinity" in dropped[ID]["cow"]
    assert "1 map(s) of 1 image(s) left out" in capsys.readouterr().out
    assert json.loads((store.folder / "repairs.json").read_text())[ID]


def test_the_field_and_the_stride_are_told(tmp_path, capsys):
    source = toy_priors.Labelled(TABLE, SIZE)
    toy_priors.write("irn", tmp_path / "in", ID, (9, 14), scores(2))
    for field, stride in ((None, 4), ("cam", 4), (None, 1)):
        out = tmp_path / f"out{field}{stride}"
        settings = Import(field=field, stride=None if stride == 4 else 1)
        store = import_priors(settings, tmp_path / "in", source, out, ids=source.ids)
        assert (store.made_by["field"], store.made_by["stride"]) == (field or "high_res", stride)
        assert f"stride {stride}, field {field or 'high_res'}" in capsys.readouterr().out
    with pytest.raises(ValueError, match="field rw; layout irn has high_res, cam"):
        survey(tmp_path / "in", TABLE, layout="irn", field="rw")


def test_masks_are_kept_at_every_pixel(tmp_path):
    source = toy_priors.Labelled(TABLE, SIZE)
    values = np.zeros(SIZE)
    values[1:4, 3:5], values[5] = 10, 15
    (tmp_path / "in").mkdir()
    grey(tmp_path / f"in/{ID}.png", values)
    store = import_priors(Import(), tmp_path / "in", source, tmp_path / "out", ids=source.ids)
    maps = store.get_scores(ID)
    assert store.made_by["stride"] == 1
    np.testing.assert_array_equal((maps.scores * (maps.classes + 1)).sum(-1), values)


@pytest.mark.parametrize("layout", ["irn", "puzzle", "clipes", "dhr", "msc_seg", "weclip"])
@pytest.mark.parametrize("classes", [None, VOC.names])
def test_one_file_is_read_without_labels(tmp_path, layout, classes):
    toy_priors.write(layout, tmp_path, "a", (9, 14), scores(2))
    maps = read_maps(tmp_path / "a.npy", classes)
    assert maps.size == SIZE and {9, 14} <= set(maps.classes.tolist())
    cow = maps.scores[..., maps.classes.tolist().index(9)]
    np.testing.assert_allclose(cow, scores(2)[0], atol=1e-3)


def test_one_file_that_may_be_several_is_refused_with_the_choices(tmp_path):
    toy_priors.save(tmp_path / "a.npy", {0: COW, 5: COW})
    with pytest.raises(BadFileError, match=r'psa_cam or psa_crf.*give layout="psa_cam"'):
        read_maps(tmp_path / "a.npy", VOC)
    assert read_maps(tmp_path / "a.npy", VOC, "psa_cam").classes.tolist() == [0, 5]
    toy_priors.save(tmp_path / "a.npy", {0: 1 - COW, 5: COW})
    assert read_maps(tmp_path / "a.npy", VOC).classes.tolist() == [4]
    np.save(tmp_path / "b.npy", np.zeros((20, *SIZE), np.float32))
    with pytest.raises(BadFileError, match="give the classes"):
        read_maps(tmp_path / "b.npy")
    assert len(read_maps(tmp_path / "b.npy", VOC).classes) == 20
    with pytest.raises(ValueError, match="did you mean"):
        read_maps(tmp_path / "b.npy", VOC, "psa_cm")
