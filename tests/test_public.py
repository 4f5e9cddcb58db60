"""The page of contents: every public name has an example that runs, and importing it is free."""

import doctest
import inspect
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import wsss_jax
from wsss_jax.data import stores
from wsss_jax.datasets import synthetic
from wsss_jax.formats.bounded import as_path
from wsss_jax.types import ScoreMaps

FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """What examples may use: a data set of twelve scenes, and a store of two records."""
    scenes = synthetic.write(tmp_path_factory.mktemp("scenes"), 12, 0)
    folder = tmp_path_factory.mktemp("store") / "maps"
    store = stores.create(folder, holds="scores", classes=("cat",), made_by={})
    for id in ("a", "b"):
        scores = np.ones((2, 3, 1), np.float32)
        classes, peak = np.zeros(1, np.int32), np.ones(1, np.float32)
        store.put_scores(id, ScoreMaps(scores, classes, (8, 12), peak))
    file = tmp_path_factory.mktemp("irn") / "2007_000504.npy"
    maps = {"keys": np.array([2, 14]), "high_res": np.ones((2, 4, 6), np.float32)}
    np.save(file, maps)  # as IRN writes it
    return {
        "scenes": scenes,
        "some_store": folder,
        "irn_file": file,
        "folder": file.with_name("drawn"),
    }


def explained() -> list[str]:
    """Public names that have a docstring of their own: tables are on the page itself."""
    return [name for name in wsss_jax.__all__ if not name.isupper()]


@pytest.mark.parametrize("name", [*explained(), ""])
def test_every_public_name_has_an_example_that_runs(name, given):
    thing = getattr(wsss_jax, name) if name else wsss_jax
    assert isinstance(thing, ModuleType) or inspect.getdoc(thing)
    found = doctest.DocTestFinder(recurse=False).find(thing, name or "wsss_jax", False, given)
    run = doctest.DocTestRunner(optionflags=FLAGS)
    results = [run.run(one) for one in found]
    assert sum(one.attempted for one in results) > 1 and not run.failures


def test_the_page_lists_its_names():
    assert 20 <= len(wsss_jax.__all__) <= 30 and set(wsss_jax.__all__) <= set(dir(wsss_jax))
    assert all(f"``{name}``" in (wsss_jax.__doc__ or "") for name in wsss_jax.__all__)
    with pytest.raises(AttributeError, match="no attribute 'dense_crt'"):
        _ = wsss_jax.dense_crt


def test_importing_the_page_loads_no_jax():
    heavy = "{'jax', 'flax', 'numpy', 'tyro', 'grain', 'tensorflow_datasets'}"
    code = f"import sys, wsss_jax; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("given", [None, 3, "", b"", ["a"]])
def test_what_is_no_path_is_named(given):
    with pytest.raises(wsss_jax.UserError, match=f"folder is {re.escape(repr(given))}, wanted the"):
        as_path(given, "folder")


def test_text_and_paths_are_paths():
    assert as_path("a/b") == as_path(Path("a/b")) == as_path(b"a/b") == Path("a/b")
