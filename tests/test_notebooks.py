"""Notebooks run from top to bottom as scripts, on the embedded data set, and draw what they say."""

import runpy
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import pytest

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"


@pytest.fixture
def headless(monkeypatch):
    before = matplotlib.get_backend()
    plt.switch_backend("agg")
    yield
    plt.close("all")
    plt.switch_backend(before)


def test_walk_and_crf_runs_without_a_photograph(headless, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("PHOTOGRAPH", raising=False)
    monkeypatch.setenv("PICTURES", str(tmp_path))
    cells = runpy.run_path(str(NOTEBOOKS / "walk_and_crf.py"))
    assert {path.stem for path in tmp_path.glob("*.png")} == {"walk", "affinity", "crf", "both"}
    assert "of the photograph is foreground" in capsys.readouterr().out
    # The two steps find more of the object than the blob did, and hardly anything else.
    truth = cells["scene"].mask == cells["label"] + 1
    found = cells["mask"]
    assert (found & truth).sum() / (found | truth).sum() > 0.3
