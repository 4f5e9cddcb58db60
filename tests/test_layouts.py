"""The layout of a folder is told from its files and the labels, or refused with the candidates."""

import numpy as np
import pytest
import toy_priors
from golden_draw import PRIORS, write_priors
from PIL import Image

from wsss_jax.data import stores
from wsss_jax.data.classes import VOC, ClassList
from wsss_jax.errors import BadFileError
from wsss_jax.priors import layouts
from wsss_jax.priors.external import READERS
from wsss_jax.stages.combine import opened
from wsss_jax.stages.import_maps import Import, import_priors

SIZE = (8, 12)
LABELS = {"a": (4, 7), "b": (0, 1), "c": (14,), "d": (0,)}


def scores(count, seed=0):
    return np.random.default_rng(seed).random((count, *SIZE), np.float32) / np.float32(count)


def folder_of(tmp_path, layout, table=LABELS, shift=0):
    for id, classes in table.items():
        numbers = [n + shift for n in classes]
        toy_priors.write(layout, tmp_path / "in", id, numbers, scores(len(classes)))
    return tmp_path / "in"


def survey(folder, table=LABELS, **more):
    return layouts.survey(folder, toy_priors.Labelled(table, SIZE), tuple(table), **more)


@pytest.mark.parametrize(
    "layout", [name for name in READERS if "store" not in name and name != "instances"]
)
def test_auto_finds_every_layout(tmp_path, layout):
    plan = survey(folder_of(tmp_path, layout))
    how = READERS[layout]
    assert plan.layout == {"mctformer": "psa_cam"}.get(layout, layout)
    assert (plan.first, plan.kind) == (how.first, how.kind)
    assert plan.classes == (("saliency",) if how.agnostic else VOC.names)
    assert survey(tmp_path / "in", layout=layout)[1:] == plan[1:]


def test_auto_reads_what_the_tools_wrote(tmp_path):
    root = write_priors(tmp_path)
    table = {id: classes for id, (classes, _) in PRIORS.items()}
    for name in ("psa_cam", "psa_crf", "irn", "puzzle", "puzzle_rw", "clipes", "mask_png"):
        plan = survey(root / name, table)
        assert plan.layout == name
        assert name != "psa_crf" or plan.kind == "activation"  # its background is no remainder
    assert survey(root / "mctformer", table).layout == "psa_cam"
    assert survey(root / "mask_palette_png", table).layout == "mask_png"


@pytest.mark.parametrize(
    "layout, table, candidates",
    [
        # Every image has aeroplanes and bicycles, and every dictionary only numbers 0 and 1: maps
        # of aeroplanes without the bicycles' number, or background and aeroplanes?
        ("psa_crf", {"a": (0, 1, 2), "b": (0, 1, 3)}, "psa_cam or psa_crf"),
        ("ccam", {"a": (0,), "b": (0,)}, "puzzle or ccam"),
    ],
)
def test_what_cannot_be_told_apart_is_refused_by_name(tmp_path, layout, table, candidates):
    for id in table:
        toy_priors.write(layout, tmp_path / "in", id, (0,), scores(1))
    with pytest.raises(BadFileError, match=f"may be {candidates}.*give --layout"):
        survey(tmp_path / "in", table)
    assert survey(tmp_path / "in", table, layout=layout).layout == layout


def grey(folder, id, values, mode="L"):
    folder.mkdir(exist_ok=True)
    Image.fromarray(np.asarray(values, np.uint8)).convert(mode).save(folder / f"{id}.png")


def test_grey_pictures_are_masks_or_saliency_by_their_values(tmp_path):
    empty = np.zeros(SIZE)
    for id in LABELS:
        grey(tmp_path / "in", id, empty)
    with pytest.raises(BadFileError, match="may be mask_png or saliency_png"):
        survey(tmp_path / "in")
    grey(tmp_path / "in", "a", empty + 5)
    assert survey(tmp_path / "in").layout == "mask_png"
    grey(tmp_path / "in", "b", empty + 120)
    assert survey(tmp_path / "in").layout == "saliency_png"
    grey(tmp_path / "in", "c", empty, "1")
    assert survey(tmp_path / "in").layout == "saliency_png"
    grey(tmp_path / "in", "d", empty, "P")
    with pytest.raises(BadFileError, match=r"mixes layouts: .*d\.png is mask_png"):
        survey(tmp_path / "in")


def test_numbers_of_other_classes_are_no_saliency(tmp_path):
    mask = np.zeros(SIZE)
    mask[:2], mask[2:4] = 30, 254
    for id in LABELS:
        grey(tmp_path / "in", id, mask)
    with pytest.raises(
        BadFileError, match="values 30, 254 look like class numbers, but there are 20 classes"
    ):
        survey(tmp_path / "in", layout="auto")
    assert survey(tmp_path / "in", layout="saliency_png").layout == "saliency_png"


def test_masks_that_were_brightened_are_no_saliency(tmp_path):
    shades = {0: 60, 1: 120, 4: 180, 7: 240, 14: 90}
    for id, classes in LABELS.items():
        mask = np.zeros(SIZE)
        for row, label in enumerate(classes):
            mask[row] = shades[label]
        grey(tmp_path / "in", id, mask)
    with pytest.raises(BadFileError, match=r"as many levels of grey .*60, 90, 120, 180, 240"):
        survey(tmp_path / "in")
    assert survey(tmp_path / "in", layout="saliency_png").layout == "saliency_png"
    grey(tmp_path / "in", "a", np.arange(SIZE[0] * SIZE[1]).reshape(SIZE) * 2)
    assert survey(tmp_path / "in").layout == "saliency_png"


def test_files_of_no_region_are_told_apart_by_nobody(tmp_path):
    (tmp_path / "in").mkdir()
    for id in LABELS:
        (tmp_path / "in" / f"{id}.json").write_text("[]")
    with pytest.raises(BadFileError, match="give --layout instances or --layout regions"):
        survey(tmp_path / "in")


def test_mixed_folders_and_two_files_of_one_image_are_refused(tmp_path):
    folder = folder_of(tmp_path, "irn")
    toy_priors.write("puzzle", folder, "b", LABELS["b"], scores(2))
    with pytest.raises(BadFileError, match=r"mixes layouts: .*a\.npy is irn.*b\.npy is puzzle"):
        survey(folder)
    grey(folder, "a", np.zeros(SIZE))
    with pytest.raises(BadFileError, match=r"both a\.npy and a\.png"):
        survey(folder)
    assert survey(folder, layout="irn").layout == "irn"


@pytest.mark.parametrize("layout", ["psa_cam", "irn", "puzzle", "mask_png"])
@pytest.mark.parametrize("auto", [True, False])
def test_a_folder_numbered_otherwise_is_refused_with_the_likely_mend(tmp_path, layout, auto):
    table = {id: classes for id, classes in LABELS.items() if id != "d"}
    folder = folder_of(tmp_path, layout, table, shift=1)
    first = READERS[layout].first
    given = {} if auto else {"layout": layout}
    with pytest.raises(BadFileError, match=rf"off by one\?.*add --first-class {first + 1}"):
        survey(folder, table, **given)
    assert survey(folder, table, **given, first=first + 1).first == first + 1
    assert survey(folder, table, **given, first=first).first == first


def test_one_bad_file_does_not_decide(tmp_path):
    folder = folder_of(tmp_path, "psa_cam")
    toy_priors.save(folder / "a.npy", {13: scores(1)[0]})
    (folder / "b.npy").write_bytes(b"nonsense")
    assert survey(folder).layout == "psa_cam"
    for id in LABELS:
        (folder / f"{id}.npy").write_bytes(b"nonsense")
    with pytest.raises(BadFileError, match=r"none of the 4 files .* can be read.*first .*a\.npy"):
        survey(folder)
    toy_priors.save(folder / "a.npy", {"logits": scores(1)[0]})
    with pytest.raises(BadFileError, match=r"none of the 4 .*fields logits, which no known layout"):
        survey(folder)


def test_wrong_folders_and_names_are_told(tmp_path):
    with pytest.raises(BadFileError, match="no such folder"):
        survey(tmp_path / "gone")
    (tmp_path / "x.npy").touch()
    with pytest.raises(BadFileError, match=r"any of the 4 images; it holds x\.npy, wanted.*a\.npy"):
        survey(tmp_path)
    with pytest.raises(ValueError, match="did you mean 'puzzle'"):
        survey(tmp_path, layout="puzle")
    with pytest.raises(BadFileError, match=r"no index\.json"):
        survey(tmp_path, layout="store")


@pytest.mark.parametrize("holds, names", [("scores", VOC.names), ("scores", ("saliency",)),
                                          ("masks", VOC.names)])  # fmt: skip
def test_our_own_stores_are_known_by_their_index(tmp_path, holds, names):
    stores.create(tmp_path / "own", holds=holds, classes=names, made_by={}, kind="probability")
    plan = survey(tmp_path / "own")
    assert plan.folder == tmp_path / "own" / holds and plan.kind == "probability"
    assert plan.classes == names
    own = {VOC.names: "store"}.get(names, "saliency_store")
    assert plan.layout == ("mask_png" if holds == "masks" else own)


def test_a_store_of_other_classes_is_refused(tmp_path):
    stores.create(tmp_path / "own", holds="scores", classes=("x", "y"), made_by={})
    with pytest.raises(BadFileError, match=r"holds x as class 1, the data set has aeroplane"):
        survey(tmp_path / "own")


def test_files_of_all_vocs_numbers_are_read_for_a_data_set_of_some_of_its_classes(tmp_path):
    """Tools number a cow 9, whatever else a folder of photographs shows."""

    class Some(toy_priors.Labelled):
        classes = ClassList(("cat", "cow", "person"))

        def labels(self, id):
            return np.isin(np.arange(3), self.table[id])

    own = {"a": (1, 2), "b": (0,)}
    whole = {"a": (9, 14), "b": (7,)}
    for layout in ("irn", "mask_png", "msc_seg"):
        folder = tmp_path / layout
        for id, classes in whole.items():
            toy_priors.write(layout, folder, id, classes, scores(len(classes)))
        plan = layouts.survey(folder, Some(own, SIZE), tuple(own))
        assert (plan.layout, plan.numbering) == (layout, VOC)
        out = tmp_path / f"{layout}_out"
        made = import_priors(Import(), folder, Some(own, SIZE), out, ids=("a", "b"))
        assert made.classes == ("cat", "cow", "person")
        assert sorted(made.get_scores("a").classes.tolist()) == [1, 2]
        assert made.get_scores("b").classes.tolist() == [0]
    for id, classes in own.items():
        toy_priors.write("irn", tmp_path / "own", id, classes, scores(len(classes)))
    assert layouts.survey(tmp_path / "own", Some(own, SIZE), tuple(own)).numbering == Some.classes


def test_folders_of_other_tools_become_stores_beside_the_result_whatever_they_are_called(tmp_path):
    for place, layout in (("x/cam", "irn"), ("y/cam", "psa_cam"), ("salient", "saliency_png")):
        for id, classes in LABELS.items():
            toy_priors.write(layout, tmp_path / place, id, classes, scores(len(classes)))
    folders = [tmp_path / place for place in ("x/cam", "y/cam", "salient")]
    made = opened(folders, toy_priors.Labelled(LABELS, SIZE), tmp_path / "out")
    assert [store.folder.relative_to(tmp_path / "out_imported").as_posix() for store in made] == [
        "x/cam", "y/cam", "salient"
    ]  # fmt: skip
    assert [store.ids() for store in made] == [tuple(LABELS)] * 3
    assert opened([made[0].folder], toy_priors.Labelled(LABELS, SIZE), tmp_path / "out") == made[:1]
