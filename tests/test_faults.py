"""Flipped bits, full disks, two runs at once, a damaged last checkpoint: nothing passes unseen."""

import errno
import io
import json
import os
import stat
import subprocess
import sys
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import toy_world

from wsss_jax.cli import main
from wsss_jax.data import files, json_records, records, stores
from wsss_jax.data.classes import ClassList
from wsss_jax.data.files import write_atomic
from wsss_jax.data.mask_files import colour_table
from wsss_jax.datasets import views
from wsss_jax.datasets.coco import open_coco
from wsss_jax.datasets.labels import npz_table
from wsss_jax.errors import BadFileError, UserError
from wsss_jax.run import folders, left_out
from wsss_jax.run.executors import Workers
from wsss_jax.run.images import each, settle
from wsss_jax.run.thresholds import label_free_threshold
from wsss_jax.stages.combine import Fusion, combine
from wsss_jax.stages.evaluate import Scoring, evaluate
from wsss_jax.stages.masks import Masking, decide
from wsss_jax.types import IGNORE, ScoreMaps

CLASSES = ("cat", "dog", "cow")


def store(folder, holds="scores", kind="activation"):
    return stores.create(folder, holds=holds, classes=CLASSES, made_by={}, kind=kind)


def maps(**changes):
    scores = np.random.default_rng(0).random((5, 7, 2), np.float32)
    fields = {"scores": scores, "classes": np.array([0, 2], np.int32), "size": (20, 27)}
    return ScoreMaps(**{**fields, "peak": scores.max((0, 1)), **changes})


def flipped(content, rng):
    bit = int(rng.integers(8 * len(content)))
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def test_no_flipped_bit_of_a_mask_is_read_as_another_mask(tmp_path):
    rng = np.random.default_rng(0)
    kept = store(tmp_path, "masks")
    mask = rng.integers(0, 4, (24, 31)).astype(np.uint8)
    kept.put_mask("a", mask)
    whole = kept.path("a").read_bytes()
    for _ in range(1500):
        with pytest.raises(BadFileError, match=r"a\.png"):
            records.check_png(flipped(whole, rng), kept.path("a"))
    for damaged in (flipped(whole, rng), whole + b"x", whole[:-1], whole[:20], b""):
        kept.path("a").write_bytes(damaged)
        with pytest.raises(BadFileError, match=r"a\.png"):
            kept.get_mask("a")


def test_no_flipped_bit_of_score_maps_is_read_as_other_scores(tmp_path):
    rng = np.random.default_rng(0)
    kept = store(tmp_path)
    kept.put_scores("a", maps())
    whole, wanted = kept.path("a").read_bytes(), kept.get_scores("a")
    refused = 0
    for _ in range(1500):
        kept.path("a").write_bytes(flipped(whole, rng))
        try:
            found = kept.get_scores("a")
        except BadFileError as problem:
            assert "a.npz" in str(problem)
            refused += 1
            continue
        # What no checksum covers (dates, say) changes nothing.
        np.testing.assert_array_equal(found.scores, wanted.scores)
        np.testing.assert_array_equal(found.classes, wanted.classes)
        np.testing.assert_array_equal(found.peak, wanted.peak)
        assert found.size == wanted.size
    assert refused > 900


def test_a_member_that_claims_to_be_compressed_is_one_error(tmp_path):
    kept = store(tmp_path)
    kept.put_scores("a", maps())
    content = bytearray(kept.path("a").read_bytes())
    with zipfile.ZipFile(kept.path("a")) as archive:
        for method in (8, 9, 12, 99):  # deflate without a stream, three that are not there
            at = archive.start_dir + 10
            content[at : at + 2] = method.to_bytes(2, "little")
            kept.path("a").write_bytes(content)
            with pytest.raises(BadFileError, match=r"a\.npz: damaged"):
                kept.get_scores("a")


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, "{", "[]", "null", '{"format": 1}', "\xff", '{"format": ' + "9" * 5000 + "}"],
    ids=["deep", "cut", "list", "null", "lacking", "bytes", "long"],
)
def test_a_damaged_index_or_settings_file_is_one_error(tmp_path, text):
    for name in ("index.json", "settings.json"):
        (tmp_path / name).write_bytes(text.encode("latin-1"))
    with pytest.raises(BadFileError, match=r"index\.json"):
        stores.open_store(tmp_path)
    (tmp_path / "finished").touch()
    with pytest.raises(BadFileError, match=r"settings\.json"):
        folders.record_of(tmp_path, "train")


@pytest.mark.parametrize("wrong", [{"holds": "x"}, {"kind": 1}, {"classes": "abc"}, {"parents": 0}])
def test_an_index_of_other_kinds_is_no_index(tmp_path, wrong):
    store(tmp_path)
    path = tmp_path / "index.json"
    json_records.write(path, json_records.read(path) | wrong)
    with pytest.raises(BadFileError, match="not an index"):
        stores.open_store(tmp_path)


def test_every_flipped_bit_of_an_index_is_noticed(tmp_path):
    kept = store(tmp_path)
    path = tmp_path / "index.json"
    content = path.read_bytes()
    for bit in np.random.default_rng(0).choice(8 * len(content), 300, replace=False):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        try:
            assert stores.open_store(tmp_path) == kept  # white space
        except BadFileError as problem:
            assert "index.json" in str(problem)
    path.write_text(json.dumps(json.loads(content) | {"classes": ["cat"]}))
    with pytest.raises(BadFileError, match="changed since it was written"):
        stores.open_store(tmp_path)


IMPLAUSIBLE = {
    "NaN peak": {"peak": np.array([np.nan, 1], np.float32)},
    "a class twice": {"classes": np.array([1, 1], np.int32)},
    "height and width exchanged": {"size": (27, 20)},
    "9 in an activation": {"scores": np.full((5, 7, 2), 9, np.float32)},
    "below 0": {"scores": np.full((5, 7, 2), -0.5, np.float32)},
    "a peak below 0": {"peak": np.array([1, -0.1], np.float32)},
    "no such class": {"classes": np.array([0, 3], np.int32)},
    "a huge photograph": {"size": (2**20, 2**20)},
    "no cells": {"scores": np.zeros((0, 7, 2), np.float32)},
}


@pytest.mark.parametrize("changes", IMPLAUSIBLE.values(), ids=IMPLAUSIBLE)
def test_implausible_records_are_refused_when_read_and_never_written(tmp_path, changes):
    kept, bad = store(tmp_path / "maps"), maps(**changes)
    kept.put_scores("good", maps())
    with pytest.raises(UserError, match="nothing was written"):
        kept.put_scores("a", bad)
    buffer = io.BytesIO()
    size = np.asarray(bad.size, np.int32)
    np.savez(buffer, scores=bad.scores, classes=bad.classes, size=size, peak=bad.peak)
    kept.path("a").write_bytes(buffer.getvalue())
    with pytest.raises(BadFileError, match=r"a\.npz"):
        kept.get_scores("a")
    # So a stage that looks at no photograph leaves it out, and says so last.
    with left_out.recorded() as record:
        decided = decide(kept, tmp_path / "masks", Masking(0.3), ids=("a", "good"))
    assert decided.ids() == ("good",)
    assert record.exit_code() == 3 and record.exit_code(strict=True) == 1
    assert record.line().startswith("left out: masks 1 of 2 image(s)")


def test_grids_of_every_stride_and_square_ones_are_plausible():
    for height, width in ((281, 500), (500, 281), (500, 333), (33, 32), (1, 90)):
        for stride in (1, 2, 3, 4, 8, 16, 31, 500):
            cells = -(-height // stride), -(-width // stride)
            for grid in (cells, (7, 7)):
                scores = np.zeros((*grid, 2), np.float32)
                assert records.fault(maps(scores=scores, size=(height, width)), 3) is None


def test_masks_of_values_that_are_no_class_are_refused(tmp_path):
    kept = store(tmp_path, "masks")
    kept.put_mask("a", np.array([[0, 3, 255]], np.uint8))
    assert kept.get_mask("a").tolist() == [[0, 3, 255]]
    kept.put_mask("a", np.array([[0, 4]], np.uint8))
    with pytest.raises(BadFileError, match="value 4 in a mask of 3 classes"):
        kept.get_mask("a")


def test_files_have_the_modes_of_the_users_umask(tmp_path):
    before = os.umask(0o027)
    try:
        write_atomic(tmp_path / "a", b"x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


def test_temporary_files_of_the_dead_are_removed_and_those_of_the_living_are_not(tmp_path):
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        gone.wait()
    dead = tmp_path / f".0-{gone.pid}-{files._HOST}.partial"
    living = tmp_path / f".0-{os.getppid()}-{files._HOST}.partial"
    fresh, old = tmp_path / ".0-1-elsewhere.partial", tmp_path / ".1-1-elsewhere.partial"
    for path in (dead, living, fresh, old):
        path.touch()
    os.utime(old, (0, 0))
    write_atomic(tmp_path / "a", b"x")
    assert {path.name for path in tmp_path.iterdir()} == {"a", living.name, fresh.name}


def test_a_full_disk_is_an_error_that_names_the_file(tmp_path, monkeypatch):
    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: .*a\.npz") as caught:
        store_at = stores.Store(tmp_path, "scores", CLASSES, "activation", {}, ())
        store_at.put_scores("a", maps())
    assert caught.value.filename == str(tmp_path / "scores/a.npz")
    assert not list((tmp_path / "scores").iterdir())


def test_a_store_without_records_is_nobodys_and_one_that_is_taken_over_is_noticed(tmp_path):
    first = store(tmp_path)
    taken = stores.create(tmp_path, holds="scores", classes=CLASSES, made_by={"rule": "mean"})
    assert stores.open_store(tmp_path) == taken
    with pytest.raises(UserError, match="another command has written other settings"):
        settle(first, each("toy", str, (), workers=Workers()))
    taken.put_scores("a", maps())
    with pytest.raises(UserError, match=r"rule: 'mean' -> None"):
        store(tmp_path)


def test_a_damaged_record_costs_a_threshold_its_image_and_is_named(tmp_path, capsys):
    kept = store(tmp_path)
    for id in ("a", "b"):
        kept.put_scores(id, maps())
    wanted = label_free_threshold(kept, ("a",))
    kept.path("b").write_bytes(kept.path("b").read_bytes()[:-1])
    assert label_free_threshold(kept, ("a", "b")) == wanted
    assert "leaves out 1 image(s)" in capsys.readouterr().out


def test_what_a_stage_left_out_may_be_missing_and_what_it_never_saw_may_not(tmp_path):
    kept = store(tmp_path, "masks")
    kept.put_mask("a", np.zeros((4, 5), np.uint8))
    write_atomic(tmp_path / "skipped.json", b'{"b": "its maps are damaged"}')
    stores.require(kept, ("a", "b"), "masks")
    for ids in (("a", "b", "c"), ("b",)):
        with pytest.raises(UserError, match="no masks of 1 of"):
            stores.require(kept, ids, "masks")


def test_a_rule_goes_on_without_maps_of_another_photograph_and_tells_why(tmp_path, capsys):
    made = toy_world.written(tmp_path / "world", 2)
    id, one = made.source.ids[0], made.systems[0]
    found = one.get_scores(id)
    turned = replace(found, scores=found.scores.swapaxes(0, 1), size=(found.size[1] * 2, 5))
    one.put_scores(id, turned)
    with left_out.recorded() as record:
        fused = combine(
            made.systems, made.source, tmp_path / "fused", Fusion(), ids=made.source.ids
        )
    assert fused.ids() == made.source.ids and record.line().startswith("left out: fused 1 map(s)")
    assert "a map of a photograph of" in capsys.readouterr().out


def test_a_rule_reads_logits_as_probabilities_and_saliency_of_the_photograph_alone(tmp_path):
    made = toy_world.written(tmp_path / "world", 2)
    id, names = made.source.ids[0], made.source.classes.names
    found = made.systems[0].get_scores(id)
    logits = stores.create(
        tmp_path / "logits", holds="scores", classes=names, made_by={}, kind="logit"
    )
    logits.put_scores(id, replace(found, scores=found.scores * 8 - 4, kind="logit"))
    plain = Fusion(renormalise=False)
    fused = combine([logits], made.source, tmp_path / "fused", plain, ids=(id,))
    wanted = 1 / (1 + np.exp(4 - 8 * found.scores.astype(np.float32)))
    np.testing.assert_allclose(fused.get_scores(id).scores, wanted, atol=5e-3)
    with pytest.raises(UserError, match="wanted one class-agnostic map"):
        combine([logits], made.source, tmp_path / "x", plain, ids=(id,), saliency=logits)
    one = np.ones((4, 4, 1), np.float32)
    cue = stores.create(tmp_path / "cue", holds="scores", classes=("saliency",), made_by={})
    cue.put_scores(id, ScoreMaps(one, np.zeros(1, np.int32), (4, 4), np.ones(1, np.float32)))
    with pytest.raises(BadFileError, match=r"cue: .* of a photograph of \(4, 4\), this one is"):
        combine([logits], made.source, tmp_path / "y", plain, ids=(id,), saliency=cue)


def test_what_cannot_be_judged_is_told(tmp_path):
    made = toy_world.written(tmp_path / "world", 1).source
    (id,), truth = made.ids, np.zeros(made.size(made.ids[0]), np.uint8)
    truth[:9] = 1
    cats = views.View(made, ClassList(CLASSES), lambda id: np.arange(3) == 0, lambda id: truth)
    held = store(tmp_path / "s")
    held.put_scores(id, maps(size=truth.shape))
    with pytest.raises(UserError, match="dog: shown by no true mask of split toy and by no map"):
        evaluate(held, cats, Scoring(classes=("dog",)), split="toy")
    with pytest.raises(UserError, match="name classes"):
        alone = Scoring(classes=("background",), background=False)
        evaluate(held, cats, alone, split="toy")
    undecided = store(tmp_path / "m", "masks")
    undecided.put_mask(id, np.full(truth.shape, IGNORE, np.uint8))
    with pytest.raises(BadFileError, match=r"not decided \(255\)"):
        evaluate(undecided, cats, Scoring(), split="toy")


def test_a_command_that_left_images_out_says_so_last_and_ends_with_code_3(tmp_path, capsys):
    kept = store(tmp_path / "maps")
    for id in ("bad", "good"):
        kept.put_scores(id, maps())
    whole = kept.path("bad").read_bytes()
    kept.path("bad").write_bytes(whole[:-1])
    command = ["masks", str(kept.folder), "--out", str(tmp_path / "masks"), "--threshold", "0.3"]
    for strict, code in (([], 3), (["--strict"], 1)):
        with pytest.raises(SystemExit) as caught:
            main([*command, *strict])
        assert caught.value.code == code
        last = capsys.readouterr().out.splitlines()[-1]
        assert last.startswith("left out: masks 1 of ")
    kept.path("bad").write_bytes(whole)
    main(command)
    assert "left out" not in capsys.readouterr().out


def test_images_left_out_are_counted_until_they_are_there(tmp_path):
    kept = store(tmp_path / "maps")
    kept.put_scores("good", maps())

    def write(id):
        if not (tmp_path / "there").exists():
            raise BadFileError(f"{id} is damaged")
        kept.put_scores(id, maps())

    with left_out.recorded() as record:
        settle(kept, each("toy", write, ("a", "b"), workers=Workers()))
        assert record.line().startswith("left out: maps 2 of 2 ")
        assert record.exit_code() == left_out.CODE
        other = stores.create(tmp_path / "b" / "maps", holds="scores", classes=CLASSES, made_by={})
        settle(other, each("toy", lambda id: other.put_scores(id, maps()), ("a",),
                           workers=Workers()))  # fmt: skip
        assert record.exit_code() == left_out.CODE  # another folder of the same name
        (tmp_path / "there").touch()
        settle(kept, each("toy", write, ("a", "b"), workers=Workers()))
    assert record.exit_code(strict=True) == 0 and record.line() == ""
    left_out.note("outside of a command", 1)  # nobody asks


def test_what_fuzzing_found_is_one_error_that_names_the_file(tmp_path):
    """Characters beyond Unicode, superscript digits, names of 3,000 letters, pictures of rows."""
    ids = np.frombuffer(np.array([0x7F000000, 0x61], "<u4").tobytes(), "<U1")
    np.savez(tmp_path / "labels.npz", ids=ids, labels=np.eye(2, dtype=np.uint8))
    with pytest.raises(BadFileError, match=r"labels\.npz.*characters that there are not"):
        npz_table(tmp_path / "labels.npz", ClassList(("a", "b")))
    (tmp_path / "colours.csv").write_text("a,1²8,0,0\n")
    with pytest.raises(BadFileError, match=r"colours\.csv: no colours"):
        colour_table((tmp_path,), ClassList(("a", "b")))
    (tmp_path / "annotations").mkdir()
    image = {"id": 1, "file_name": "a" * 3000, "height": 6, "width": 8}
    content = {"images": [image], "annotations": [], "categories": [{"id": 5, "name": "cat"}]}
    (tmp_path / "annotations/instances_v.json").write_text(json.dumps(content))
    with pytest.raises(BadFileError, match=r"instances_v\.json.*file name of 3000 characters"):
        open_coco(tmp_path, "v")
    long = files.Image.new("L", (files.MAX_SIDE + 1, 1))
    long.save(tmp_path / "long.png")
    with pytest.raises(BadFileError, match=r"long\.png: 100001×1 pixels, sides of at most"):
        files.read_levels(tmp_path / "long.png")


def test_pictures_that_are_made_to_be_slow_are_refused_from_their_bytes(tmp_path):
    path = tmp_path / "a.jpg"
    files.Image.new("RGB", (16, 16)).save(path, progressive=True)
    content = path.read_bytes()
    assert files.opened(content, "a.jpg").size == (16, 16)
    last = content[content.rindex(b"\xff\xda") : -2]
    path.write_bytes(content[:-2] + last * files.MOST_SCANS + content[-2:])
    with pytest.raises(BadFileError, match=r"a\.jpg: a JPEG of more than 100 scans"):
        files.opened(path, path)
    with pytest.raises(BadFileError, match="at most 4,000,000 of this kind of PPM"):
        files.opened(b"P6 3000 2000 65535\n", "a.ppm")
    assert files.opened(b"P6 3000 2000 255\n", "a.ppm").size == (3000, 2000)
