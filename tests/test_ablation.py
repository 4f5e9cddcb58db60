"""What each part of the combiner is worth: the variants, their rows, and the table."""

from dataclasses import replace

import numpy as np
import pytest
import toy_world

from wsss_jax.combiner.settings import Combining
from wsss_jax.errors import UserError
from wsss_jax.ops.image_counts import cells_of, gathered
from wsss_jax.stages.evaluate import Result
from wsss_jax.study import ablation
from wsss_jax.study.ablation import Study, Variant

SETTINGS = Combining(cells=24, walk_steps=0, smoothing=0.0, rounds=0)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return toy_world.written(tmp_path_factory.mktemp("world"), count=3)


def study_of(inputs, **more):
    systems = {store.folder.name: store for store in inputs.systems[:2]}
    features = {store.folder.name: store for store in inputs.features}
    source = inputs.source
    return Study(source, source.ids, {"all": source}, {**systems, **more}, features)


def test_standard_takes_one_thing_out_at_a_time():
    whole, *rows = ablation.standard(
        ("a", "b", "c"), ("f", "g"), Combining(), saliency=True, noise="noise"
    )
    assert (whole.systems, whole.features, whole.saliency) == (("a", "b", "c"), ("f", "g"), True)
    by_name = {row.name: row for row in rows}
    assert not by_name["without saliency"].saliency
    assert by_name["without a"].systems == ("b", "c") and by_name["c alone"].systems == ("c",)
    missing = by_name["b missing when fused"]
    assert missing.systems == whole.systems and missing.tested == ("a", "c")
    assert by_name["features of g alone"].features == ("g",)
    assert by_name["g first"].features == ("g", "f")
    assert by_name["a system of noise added"].systems == ("a", "b", "c", "noise")
    settings = by_name["without probe and smoothing"].settings
    assert settings == replace(Combining(), smoothing=0.0, rounds=0)
    assert len(by_name) == len(rows) == 25
    assert len({ablation.folder_of(row) for row in rows}) == 25


def test_without_saliency_and_with_one_network_there_are_fewer_rows():
    names = [row.name for row in ablation.standard(("a", "b"), ("f",), Combining(), saliency=False)]
    assert "without saliency" not in names and not any("features" in name for name in names)
    assert "without a" not in names  # that is "b alone"
    with pytest.raises(UserError, match="1 system to take apart"):
        ablation.standard(("a",), (), Combining(), saliency=False)


def test_a_system_of_noise_has_the_grids_of_another_and_is_drawn_once(inputs, tmp_path):
    like, ids = inputs.systems[0], inputs.source.ids
    first = ablation.noise_system(like, tmp_path / "noise", ids=ids)
    other = ablation.noise_system(like, tmp_path / "other", ids=ids[::-1])
    for id in ids:
        noise, model = first.get_scores(id), like.get_scores(id)
        assert noise.scores.shape == model.scores.shape and noise.size == model.size
        np.testing.assert_array_equal(noise.classes, model.classes)
        np.testing.assert_array_equal(noise.scores, other.get_scores(id).scores)
    both = (store.get_scores(ids[0]).scores.ravel() for store in (first, like))
    assert abs(np.corrcoef(*both)[0, 1]) < 0.15


def test_rows_are_made_judged_and_found_again(inputs, tmp_path, capsys):
    study = study_of(inputs)
    rows = (
        Variant("all", ("part", "overctx"), ("colours",), SETTINGS, saliency=False),
        Variant("part missing", ("part", "overctx"), ("colours",), SETTINGS, False, ("overctx",)),
    )
    found = ablation.run(rows, study, tmp_path)
    assert list(found) == ["all", "part missing"] and "all: all " in capsys.readouterr().out
    text = (tmp_path / "ablation.md").read_text()
    assert text == ablation.markdown(found)
    fused = tmp_path / "part_missing" / "fused"
    before = {path: path.stat().st_mtime_ns for path in fused.rglob("*.npz")}
    again = ablation.run(rows, study, tmp_path)
    assert {path: path.stat().st_mtime_ns for path in fused.rglob("*.npz")} == before
    assert again["part missing"]["all"].miou() == found["part missing"]["all"].miou()


def test_the_table_has_the_difference_to_its_first_row():
    right = np.tile(np.diag([8, 8])[None], (6, 1, 1))
    wrong = np.tile(np.array([[6, 2], [2, 6]])[None], (6, 1, 1))
    found = {name: {"val": result(counts)} for name, counts in (("all", right), ("less", wrong))}
    head, _, first, second = ablation.markdown(found).splitlines()
    assert head == "| variant | val | difference |"
    assert first == "| all | 100.0 |  |"
    assert second == "| less | 60.0 | -40.0 (-40.0 … -40.0) |"


def test_two_variants_of_one_folder_are_refused(inputs, tmp_path):
    rows = [Variant(name, ("part",), ()) for name in ("penalty × 10", "penalty 10")]
    with pytest.raises(UserError, match="two variants share the folder penalty_10"):
        ablation.run(rows, study_of(inputs), tmp_path)


def result(counts):
    found = gathered({f"i{n:04d}": cells_of(one[None]) for n, one in enumerate(counts)}, 2, 0)
    return Result("s", "val", 0.5, 0.5, found, found, np.zeros(1), (0, 1))
