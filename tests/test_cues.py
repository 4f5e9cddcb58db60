"""Importing a folder: what is in order arrives, what is not is listed, and nothing is lost."""

import json

import numpy as np
import pytest
import toy_priors
from PIL import Image

from wsss_jax import cli
from wsss_jax.data import stores
from wsss_jax.datasets import synthetic
from wsss_jax.datasets.table import open_dataset
from wsss_jax.errors import BadFileError
from wsss_jax.stages.import_maps import Import, import_priors


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return open_dataset(synthetic.write(tmp_path_factory.mktemp("scenes"), 12, 0), split="all")


def scores(source, id):
    classes = np.flatnonzero(source.labels(id))
    values = np.random.default_rng(len(id)).random((len(classes), *source.size(id)), np.float32)
    return classes.tolist(), values / np.float32(len(classes))


def written(source, folder, layout):
    for id in source.ids:
        toy_priors.write(layout, folder, id, *scores(source, id))
    return folder


def imported(source, folder, out, **settings):
    return import_priors(Import(**settings), folder, source, out, ids=source.ids)


def test_maps_that_are_there_are_not_read_again_which_is_told(source, tmp_path, capsys):
    folder = written(source, tmp_path / "in", "psa_cam")
    imported(source, folder, tmp_path / "out")
    assert "from before" not in capsys.readouterr().out
    imported(source, folder, tmp_path / "out")
    told = f"maps of {len(source.ids)} images are there from before, and are not read again"
    assert told in capsys.readouterr().out


def test_a_folder_of_files_good_and_bad(source, tmp_path, capsys):
    """Each hostile file is one line in a list, and all the others arrive."""
    folder = written(source, tmp_path / "in", "psa_cam")
    ids = iter(source.ids)

    class Exploit:
        def __reduce__(self):
            return eval, ("1",)

    def spoil(change):
        id = next(ids)
        classes, maps = scores(source, id)
        content = change(dict(zip(classes, maps, strict=True)), id)
        toy_priors.save(folder / f"{id}.npy", content)
        return id

    reasons = {
        spoil(lambda maps, id: {**maps, 99: Exploit()}): "names builtins.eval",
        spoil(lambda maps, id: {n: m * np.nan for n, m in maps.items()}): "NaN or infinity",
        spoil(lambda maps, id: {n: m[:7] for n, m in maps.items()}): "wanted the photograph's",
        spoil(lambda maps, id: {n + 50: m for n, m in maps.items()}): "another image or data set",
        (cut := next(ids)): "cut off|expected|damaged",
        (gone := next(ids)): "no file of",
    }
    repairs = {
        spoil(lambda maps, id: {n: (m * 255).astype("u1") for n, m in maps.items()}): "by 255",
        spoil(lambda maps, id: {**maps, 99: 0 * maps[min(maps)]}): "left out class 99",
        spoil(lambda maps, id: {n: 9 * m for n, m in maps.items()}): "divided by its maximum",
    }
    (folder / f"{cut}.npy").write_bytes((folder / f"{cut}.npy").read_bytes()[:1024])
    (folder / f"{gone}.npy").unlink()
    store = imported(source, folder, tmp_path / "out")
    out = capsys.readouterr().out
    assert "layout psa_cam" in out and "skipped 6 image(s)" in out and "3 image(s) with" in out
    assert set(store.ids()) == set(source.ids) - set(reasons)
    for name, wanted in (("skipped.json", reasons), ("repairs.json", repairs)):
        found = json.loads((store.folder / name).read_text())
        assert set(found) == set(wanted)
        for id, text in wanted.items():
            assert any(part in str(found[id]) for part in text.split("|")), (id, found[id])
    for id in source.ids[6:]:
        assert not store.missing([id]) and np.isfinite(store.get_scores(id).scores).all()


def test_the_same_command_adds_what_was_mended_and_keeps_the_list(source, tmp_path):
    folder = written(source, tmp_path / "in", "psa_cam")
    first, second = source.ids[:2]
    for id, factor in ((first, 255.0), (second, np.nan)):
        classes, maps = scores(source, id)
        toy_priors.save(folder / f"{id}.npy", dict(zip(classes, maps * factor, strict=True)))
    store = imported(source, folder, tmp_path / "out")
    assert store.missing(source.ids) == (second,)
    toy_priors.write("psa_cam", folder, second, *scores(source, second))
    store = imported(source, folder, tmp_path / "out")
    assert not store.missing(source.ids) and not (store.folder / "skipped.json").exists()
    assert set(json.loads((store.folder / "repairs.json").read_text())) == {first}
    with pytest.raises(ValueError, match=r"made_by\.stride: 4 -> 2"):
        imported(source, folder, tmp_path / "out", stride=2)


def test_nothing_is_written_where_the_layout_is_in_doubt(source, tmp_path):
    folder = written(source, tmp_path / "in", "irn")
    (folder / f"{source.ids[0]}.png").touch()
    with pytest.raises(BadFileError, match="say which with --layout"):
        imported(source, folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="stride is 0"):
        Import(stride=0)


def test_masks_are_said_to_be_hard_and_a_store_is_taken_in_again(source, tmp_path):
    folder = written(source, tmp_path / "in", "mask_png")
    store = imported(source, folder, tmp_path / "masks", stride=1)
    assert store.made_by["hard"] and store.kind == "probability"
    id = source.ids[0]
    maps = store.get_scores(id)
    mask = np.asarray(Image.open(folder / f"{id}.png"))
    assert set(np.unique(maps.scores)) <= {0.0, 1.0}
    np.testing.assert_array_equal((maps.scores * (maps.classes + 1)).sum(-1), mask)
    again = imported(source, tmp_path / "masks", tmp_path / "again", stride=1)
    assert again.made_by["layout"] == "store" and again.kind == "probability"
    np.testing.assert_array_equal(again.get_scores(id).scores, maps.scores)


def test_the_command_imports_and_names_its_store(source, tmp_path, capsys):
    folder = written(source, tmp_path / "in", "irn")
    out = tmp_path / "out"
    arguments = ["import", folder, "--layout", "auto", "--data", source.root, "--out", out]
    cli.main([str(argument) for argument in arguments])
    assert capsys.readouterr().out.splitlines()[-1] == str(out)
    store = stores.open_store(out)
    assert store.made_by["layout"] == "irn" and not store.missing(source.ids)
    with pytest.raises(SystemExit):
        cli.main([*map(str, arguments[:-1]), str(tmp_path / "other"), "--first-class", "5"])
    assert "error: " in capsys.readouterr().err
