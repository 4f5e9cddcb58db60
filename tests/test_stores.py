"""Stores keep what was put in, refuse what they did not make, and never unpickle."""

import io
import shutil
import zipfile

import numpy as np
import pytest
from PIL import Image

from wsss_jax.data import json_records, provenance, stores
from wsss_jax.errors import BadFileError, UserError
from wsss_jax.types import Provenance, ScoreMaps

CLASSES = ("cat", "dog", "cow")


def maps(kind="activation"):
    scores = np.random.default_rng(0).random((5, 7, 2), np.float32)
    return ScoreMaps(scores, np.array([0, 2], np.int32), (20, 27), scores.max((0, 1)), kind)


def store(folder, **changes):
    settings = {"holds": "scores", "classes": CLASSES, "made_by": {"alpha": 4}} | changes
    return stores.create(folder, **settings)


def test_score_maps_survive_to_half_precision(tmp_path):
    kept = store(tmp_path)
    kept.put_scores("a", maps())
    back = stores.open_store(tmp_path).get_scores("a")
    np.testing.assert_allclose(back.scores, maps().scores, atol=5e-4)
    np.testing.assert_array_equal(back.classes, [0, 2])
    assert back.size == (20, 27) and back.kind == "activation"


def test_what_was_made_of_a_store_that_was_made_anew_is_another(tmp_path):
    first = store(tmp_path / "a")
    first.put_scores("a", maps())
    child = store(tmp_path / "b", parents=(first, "run"))
    child.put_scores("a", maps())
    first.put_scores("b", maps())  # it only grows
    assert store(tmp_path / "b", parents=(store(tmp_path / "a"), "run")) == child
    shutil.rmtree(tmp_path / "a")
    again = store(tmp_path / "a")
    again.put_scores("a", maps())
    with pytest.raises(
        UserError, match=r"b was made from another store called a, not from the one"
    ):
        store(tmp_path / "b", parents=(again, "run"))
    assert child.parents == ("a", "run")


def test_the_kind_of_record_that_a_store_lacks_is_told(tmp_path):
    kept = store(tmp_path)
    kept.put_scores("a", maps())
    with pytest.raises(UserError, match="holds scores; wanted a store of masks"):
        kept.get_mask("a")


def test_masks_survive_exactly_and_are_palette_pictures(tmp_path):
    kept = store(tmp_path, holds="masks")
    mask = np.array([[0, 1, 3], [255, 2, 0]], np.uint8)
    kept.put_mask("a", mask)
    np.testing.assert_array_equal(kept.get_mask("a"), mask)
    with Image.open(kept.path("a")) as picture:
        assert picture.mode == "P"


def test_missing_names_what_is_left_in_order(tmp_path):
    kept = store(tmp_path)
    for id in ("b", "d"):
        kept.put_scores(id, maps())
    assert kept.missing(("d", "c", "b", "a")) == ("c", "a")
    assert kept.ids() == ("b", "d")


def test_the_same_settings_open_it_again_and_others_are_refused_by_name(tmp_path):
    store(tmp_path).put_scores("a", maps())
    assert store(tmp_path).ids() == ("a",)
    with pytest.raises(ValueError, match=r"made_by\.alpha: 4 -> 5"):
        store(tmp_path, made_by={"alpha": 5})


@pytest.mark.parametrize("id", ["../x", "/etc/passwd", "a/../b", "", "a\0b", "a\nb"])
def test_ids_that_could_leave_the_folder_are_refused(tmp_path, id):
    with pytest.raises(ValueError, match="not usable as a file name"):
        store(tmp_path).put_scores(id, maps())


@pytest.mark.parametrize(
    "id",
    ["IMG 001", "Katze_größe", "猫" * 80, "-x", ".x", "a/b", "100%", 'say "a"?', "con", "x" * 400,
     "Ka\u0308tze", "a\\b", "é", "a.b.c"],
)  # fmt: skip
def test_any_name_makes_a_record_and_comes_back(tmp_path, id):
    kept = store(tmp_path)
    kept.put_scores(id, maps())
    assert kept.ids() == (id,) and kept.missing([id, "y"]) == ("y",)
    assert kept.get_scores(id).size == maps().size
    for part in kept.path(id).relative_to(tmp_path).parts:
        assert len(part.encode()) < 200 and not set(part) & set('\\:*?"<>|') and part[0] not in ".-"


def test_a_link_out_of_the_folder_is_refused(tmp_path):
    kept = store(tmp_path / "store")
    kept.put_scores("a", maps())
    (tmp_path / "elsewhere.npz").write_bytes(kept.path("a").read_bytes())
    (tmp_path / "store/scores/b.npz").symlink_to(tmp_path / "elsewhere.npz")
    with pytest.raises(ValueError, match="leaves"):
        kept.get_scores("b")


def test_another_kind_and_nan_are_refused_before_anything_is_written(tmp_path):
    kept = store(tmp_path)
    with pytest.raises(ValueError, match="holds activation scores"):
        kept.put_scores("a", maps("probability"))
    bad = maps()
    bad.scores[0, 0, 0] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        kept.put_scores("a", bad)
    assert kept.ids() == ()


def npz(**arrays):
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def huge_header():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        header = io.BytesIO()
        description = {"descr": "<f2", "fortran_order": False, "shape": (1 << 20, 1 << 21, 1)}
        np.lib.format.write_array_header_1_0(header, description)
        archive.writestr("scores.npy", header.getvalue())
    return buffer.getvalue()


def record(**changes):
    fields = {
        "scores": np.ones((2, 2, 1), np.float16),
        "classes": np.zeros(1, np.int16),
        "size": np.array([8, 8], np.int32),
        "peak": np.ones(1, np.float32),
    }
    return npz(**(fields | changes))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a zip",
        record()[:100],
        npz(scores=np.ones(3)),
        record(scores=np.array([{"a": 1}], dtype=object)),
        record(scores=np.full((2, 2, 1), np.nan, np.float16)),
        record(classes=np.array([9], np.int16)),
        record(classes=np.zeros(2, np.int16)),
        huge_header(),
    ],
    ids=["empty", "text", "cut", "fields", "object", "nan", "class", "count", "huge"],
)
def test_a_damaged_or_hostile_record_gives_one_clear_error(tmp_path, content):
    kept = store(tmp_path)
    kept.put_scores("a", maps())
    kept.path("a").write_bytes(content)
    with pytest.raises(BadFileError, match=r"a\.npz"):
        kept.get_scores("a")


def test_a_folder_without_or_with_a_damaged_index_is_no_store(tmp_path):
    with pytest.raises(BadFileError, match="run the stage that makes it"):
        stores.open_store(tmp_path)
    damaged = (b"{", b"[]", b'{"format": 99}', b'{"format": 1}', b"[" * 100_000, b"\xff", b"1e999")
    for content in damaged:
        (tmp_path / "index.json").write_bytes(content)
        with pytest.raises(BadFileError, match=r"index\.json"):
            stores.open_store(tmp_path)


@pytest.mark.parametrize("classes", [[], ["a", "a"], ["a\u0000"], [f"c{n}" for n in range(255)]])
def test_an_index_of_classes_that_cannot_be_is_none(tmp_path, classes):
    store(tmp_path)
    content = json_records.read(tmp_path / "index.json")
    json_records.write(tmp_path / "index.json", {**content, "classes": classes})
    with pytest.raises(BadFileError, match="not an index of this program"):
        stores.open_store(tmp_path)


def test_a_store_of_other_classes_is_refused_with_the_first_that_differs(tmp_path):
    made = store(tmp_path)
    stores.require_classes(made, made.classes)
    with pytest.raises(UserError, match="as class 1, the data set has other"):
        stores.require_classes(made, ("other", *made.classes[1:]))
    with pytest.raises(UserError, match=f"the data set has {len(made.classes) + 1};"):
        stores.require_classes(made, (*made.classes, "one more"))


def test_half_written_files_are_not_records(tmp_path):
    kept = store(tmp_path)
    kept.put_scores("a", maps())
    (tmp_path / "scores/.b.partial").write_bytes(b"half")
    assert kept.ids() == ("a",)


def test_what_is_made_from_true_masks_or_weights_says_so_however_far_from_them(tmp_path):
    few = store(tmp_path / "few", made_by={"stage": "learned", "labelled": ["b", "a"]})
    more = store(tmp_path / "more", made_by={"labelled": ["c", "a"]})
    free = store(tmp_path / "free", made_by={"among": "labelled"})
    run = {"learned_from": {"made_by": {"stage": "labels", **provenance.inherited(few)}}}
    assert provenance.inherited(free, None, {"seed": 0}) == {}
    assert provenance.inherited(few, free, more) == {"labelled": ["a", "b", "c"]}
    assert provenance.inherited(run) == {"labelled": ["a", "b"]}
    one, two = Provenance("v2", "Apache-2.0", "image labels"), Provenance("s", "not known", "masks")
    first = store(tmp_path / "one", made_by=provenance.recorded(one, one))
    both = {"saliency": {"by": provenance.recorded(two)}, **provenance.inherited(first, few)}
    last = store(tmp_path / "last", made_by={"stage": "fuse", **provenance.inherited(both)})
    assert provenance.sources_of(stores.open_store(last.folder)) == (two, one)
    assert provenance.inherited(last)["labelled"] == ["a", "b"]


def test_a_damaged_record_of_sources_is_named(tmp_path):
    with pytest.raises(BadFileError, match="record of sources is damaged"):
        provenance.sources_of(store(tmp_path, made_by={"sources": [{"name": "v2"}]}))


def test_what_follows_from_the_settings_is_not_compared(tmp_path):
    store(tmp_path).put_scores("a", maps())  # as by a version that recorded no sources
    source = Provenance("v2", "Apache-2.0", "image labels")
    again = store(tmp_path, made_by={"alpha": 4, **provenance.recorded(source)})
    assert again.ids() == ("a",)
    assert provenance.sources_of(stores.open_store(tmp_path)) == (source,)
    assert provenance.sources_of(store(tmp_path)) == ()
    assert provenance.sources_of(stores.open_store(tmp_path)) == (source,)
