"""Pages name only what is there: files of the repository, verbs, and public names."""

import importlib
import os
import re
from pathlib import Path

import pytest

import wsss_jax
from wsss_jax.cli.table import VERBS
from wsss_jax.explain import EXPLAINERS

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("benchmarks", "docs", "experiments", "notebooks", "tests", "wsss_jax")
PACKAGES = tuple(
    sorted(p.name for p in (ROOT / "wsss_jax").iterdir() if (p / "__init__.py").exists())
)
PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "benchmarks").glob("*.md"), *(ROOT / "docs").rglob("*.md")]
)
PATH = re.compile(r"(?<![\w/.*…-])((?:[\w.-]+/)+[\w*.-]*|[\w*-]+\.(?:py|md|toml|yml))(?![\w/…<{])")
PLACEHOLDERS = ("EXPERIMENT.py",)
THEIRS = (
    "infer_cls.py",
    "infer_SEAM.py",
    "make_cam.py",
    "produce_wss_masks.py",
    "test_msc_flip_voc.py",
    "infer_seg_voc.py",
)
"""Scripts of other tools, whose output is read."""


def missing(text: str, page: Path) -> list[str]:
    """Paths in the text that look like files of the repository, and are none.

    They count from the page, the root, the package, and where pages list modules or experiments.
    """
    here = ("", "wsss_jax", "wsss_jax/combiner", "experiments", "benchmarks")
    bases = (page.parent, *(ROOT / folder for folder in here))
    found = []
    for name in (name.rstrip(".") for name in PATH.findall(text)):
        ours = name.split("/")[0] in (*FOLDERS, *PACKAGES) if "/" in name else True
        if (
            ours
            and name not in (*PLACEHOLDERS, *THEIRS)
            and not any(any(base.glob(name.rstrip("/"))) for base in bases)
        ):
            found.append(name)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_names_only_files_that_are_there(page):
    assert missing(page.read_text(encoding="utf-8"), page) == []


def test_a_path_that_is_not_there_is_found():
    text = "see `benchmarks/GONE.md`, `gone.py`, `ops/walk.py`, `voc12_*.py` and runs/mine/a.png"
    assert missing(text, ROOT / "README.md") == ["benchmarks/GONE.md", "gone.py"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_names_only_verbs_and_public_names_that_are_there(page):
    text = page.read_text(encoding="utf-8")
    verbs = set(re.findall(r"^wsss ([a-z]+)|[`(]wsss ([a-z]+)", text, re.MULTILINE))
    named = {one or other for one, other in verbs}
    assert named <= {*VERBS}, named - {*VERBS}
    public = set(re.findall(r"\bwj\.([a-zA-Z_]+)", text))
    assert public <= {*wsss_jax.__all__}, public - {*wsss_jax.__all__}
    methods = set(re.findall(r"\bwj\.explain\.([a-z_]+)\(", text))
    assert methods <= {*EXPLAINERS}, methods - {*EXPLAINERS}


def test_the_reference_holds_what_is_there_and_all_that_is_public():
    text = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    named = re.findall(r"^::: ([\w.]+)\.(\w+)$", text, re.MULTILINE)
    assert named
    for module, name in named:
        assert hasattr(importlib.import_module(module), name), f"{module}.{name}"
    lacking = [name for name in wsss_jax.__all__ if not re.search(rf"\b{name}\b", text)]
    assert lacking == []


def test_the_tables_of_the_site_come_out_of_the_code(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    for name in ("COLUMNS", "JAX_PLATFORMS", "NO_COLOR"):  # the module sets them; taken back here
        monkeypatch.setenv(name, os.environ.get(name, ""))
    made = importlib.import_module("tables").MADE
    tables = {name: make() for name, make in made.items()}
    assert all(text.count("\n") > 2 for text in tables.values()), tables.keys()
