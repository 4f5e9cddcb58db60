"""Stores in few large files: the same records, through the same functions, whoever was killed."""

import errno
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from wsss_jax.config import as_json
from wsss_jax.data import shards, stores
from wsss_jax.errors import BadFileError, MissingFileError
from wsss_jax.priors import regions
from wsss_jax.run.executors import Workers, map_unordered
from wsss_jax.stages import store as stage
from wsss_jax.types import ScoreMaps

CLASSES = ("cat", "dog", "cow")
IDS = ("IMG 001", "a/b", "Katze_größe", "x" * 400, "猫", "d")


def maps(seed=0):
    scores = np.random.default_rng(seed).random((5, 7, 2), np.float32)
    return ScoreMaps(scores, np.array([0, 2], np.int32), (20, 27), scores.max((0, 1)), "activation")


def store(folder, holds="scores"):
    return stores.create(folder, holds=holds, classes=CLASSES, made_by={"alpha": 4})


def filled(folder, ids=IDS):
    made = store(folder)
    for seed, id in enumerate(ids):
        made.put_scores(id, maps(seed))
    return made


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*"))


def the_shard(folder):
    (path,) = (folder / "shards").glob("*.array_record")
    return path


def mask(folder, id):
    stores.open_store(folder).put_mask(id, np.zeros((2, 3), np.uint8))


def test_packed_records_are_the_same_and_so_are_unpacked_ones(tmp_path, capsys):
    made = filled(tmp_path)
    before = {path: (tmp_path / path).read_bytes() for path in files(tmp_path)}
    stage.command("pack", tmp_path)
    assert "6 records in 2 files" in capsys.readouterr().out
    again = stores.open_store(tmp_path)
    assert again == made and again.ids() == tuple(sorted(IDS))
    assert again.missing(["y", *IDS]) == ("y",) and again.has("猫") and not again.has("y")
    for seed, id in enumerate(IDS):
        np.testing.assert_array_equal(again.get_scores(id).scores, maps(seed).scores.astype("f2"))
    with pytest.raises(MissingFileError, match="no record of y; run the stage"):
        again.get_scores("y")
    stage.command("unpack", tmp_path)
    assert {path: (tmp_path / path).read_bytes() for path in files(tmp_path)} == before


def test_what_is_written_later_goes_into_shards_and_the_newest_counts(tmp_path):
    made = filled(tmp_path)
    made.pack()
    made.put_scores("d", maps(9))
    made.put_scores("e", maps(8))
    for _ in range(2):  # from single files, and from the second shard
        np.testing.assert_array_equal(made.get_scores("d").scores, maps(9).scores.astype("f2"))
        assert made.has("e") and len(made.ids()) == 7
        made.gather()
    assert len(files(tmp_path)) == 3
    made.unpack()
    np.testing.assert_array_equal(made.get_scores("d").scores, maps(9).scores.astype("f2"))


def test_a_store_that_grows_large_is_packed_while_it_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(stores, "MANY", 6)
    monkeypatch.setattr(shards, "GROUP", 4)
    made = store(tmp_path, "masks")
    for number in range(17):
        made.put_mask(f"i{number}", np.full((2, 3), number % 3, np.uint8))
    # The first four were written when there were few; the last one is no whole group.
    assert len(files(tmp_path)) == 1 + 3 + 4 + 1
    made.gather()
    assert len(files(tmp_path)) == 1 + 3 + 2
    assert [int(made.get_mask(f"i{n}")[0, 0]) for n in range(17)] == [n % 3 for n in range(17)]


def test_a_store_of_regions_and_an_empty_one_are_packed_too(tmp_path):
    made = store(tmp_path / "r", "regions")
    found = regions.Regions((2, 3), (np.array([0, 6]),), np.ones(1, np.float32), (None,), ())
    regions.put_regions(made, "a", found)
    made.pack()
    assert regions.get_regions(made, "a").mask(0).all() and len(files(tmp_path / "r")) == 2
    empty = store(tmp_path / "e")
    empty.pack()
    assert empty.ids() == () and empty.missing(["a"]) == ("a",) and not empty.has("a")


def test_a_killed_writer_loses_nothing_that_it_has_finished(tmp_path):
    made = store(tmp_path, "masks")
    made.pack()
    command = [sys.executable, Path(__file__).with_name("toy_shards.py"), tmp_path]
    ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    assert ended.returncode == -signal.SIGKILL
    told = ended.stdout.split()
    assert told == [f"i{number}" for number in range(8)] and set(made.ids()) == set(told)
    assert [int(made.get_mask(id)[0, 0]) for id in told] == [n % 3 for n in range(8)]
    made.gather()  # as the next command does; what the dead left behind goes
    assert len(files(tmp_path)) == 3 and not list(tmp_path.rglob("*.partial"))
    assert made.missing(told) == ()


def test_several_processes_and_threads_share_a_store(tmp_path):
    made = store(tmp_path, "masks")
    made.pack()
    ids = [f"i{number}" for number in range(40)]
    outcomes = map_unordered(partial(mask, tmp_path), ids, Workers(2))
    assert all(outcome.failure is None for outcome in outcomes)
    with ThreadPoolExecutor(4) as pool:  # all seal the same files
        list(pool.map(lambda _: stores.open_store(tmp_path).pack(), range(4)))
        assert all(m.shape == (2, 3) for m in pool.map(made.get_mask, ids * 5))
    assert made.missing(ids) == () and not list((tmp_path / "masks").iterdir())


def test_open_files_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "GROUP", 1)
    ids = [f"i{number}" for number in range(shards._OPEN + 20)]
    made = filled(tmp_path, ids)
    made.pack()
    for id in ids:
        made.get_scores(id)
    opened = [Path(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd")]
    assert sum("shards" in os.readlink(path) for path in opened if path.is_symlink()) <= 32


def flipped(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("where", ["record", "list", "footer", "cut", "empty", "other"])
def test_a_damaged_shard_is_one_error_that_says_what_to_do(tmp_path, where):
    made = filled(tmp_path)
    made.pack()
    path = the_shard(tmp_path)
    content = path.read_bytes()
    if where in ("cut", "empty", "other"):
        path.write_bytes({"cut": content[:70_000], "empty": b"", "other": b"x" * 100_000}[where])
    else:
        at = {"record": content.index(b"scores.npy"), "list": content.index(b'["')}
        flipped(path, at[where] if where != "footer" else len(content) - 65_536 + 5)
    shards._reader.cache_clear()
    shards._indices.clear()
    with pytest.raises(BadFileError, match=r"array_record: damaged .*delete the file"):
        made.ids()
        made.get_scores(min(IDS))
    path.unlink()
    assert made.missing(IDS) == IDS


def test_records_that_changed_places_are_refused(tmp_path):
    made = filled(tmp_path)
    made.pack()
    index = shards._index(tmp_path)
    index.places["d"], index.places["猫"] = index.places["猫"], index.places["d"]
    with pytest.raises(BadFileError, match="is not what was written"):
        made.get_scores("d")


def test_a_full_disk_keeps_the_files(tmp_path, monkeypatch):
    made = filled(tmp_path)

    class Full:
        def __init__(self, path, options):
            Path(path).touch()

        def write(self, content):
            raise RuntimeError("write() failed: No space left on device; writing x; at byte 0")

    monkeypatch.setattr(shards, "ArrayRecordWriter", Full)
    with pytest.raises(OSError, match=r"No space left on device.*array_record") as caught:
        made.pack()
    assert caught.value.errno == errno.ENOSPC
    assert made.missing(IDS) == () and len(files(tmp_path)) == 1 + len(IDS)


def test_a_packed_store_resumes_as_any_other(tmp_path):
    filled(tmp_path).pack()
    assert store(tmp_path).missing(IDS) == ()
    with pytest.raises(ValueError, match=r"made_by\.alpha: 4 -> 5"):
        stores.create(tmp_path, holds="scores", classes=CLASSES, made_by=as_json({"alpha": 5}))
