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


def test_combiner_inputs_makes_a_table_and_pictures(headless, tmp_path, monkeypatch, capsys):
    for name, value in {"IMAGES": "6", "SIDE": "24", "SYSTEMS": "2", "ROWS": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("OUT", str(tmp_path))
    cells = runpy.run_path(str(NOTEBOOKS / "combiner_inputs.py"))
    assert (tmp_path / "trust.png").stat().st_size > 10_000
    text = (tmp_path / "ablation.md").read_text()
    assert text in capsys.readouterr().out
    assert list(cells["found"]) == ["all", "without the probe"]
    assert all(f"| {name} |" in text for name in cells["found"])
    assert cells["shares"].sum(axis=1) == pytest.approx(1, abs=1e-2)


def test_explainers_trains_explains_and_judges(headless, tmp_path, monkeypatch, capsys):
    few = {"IMAGES": "12", "EPOCHS": "1", "JUDGED": "4", "METHODS": "cam layer_cam", "PAINTED": "2"}
    for name, value in few.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PICTURES", str(tmp_path))
    cells = runpy.run_path(str(NOTEBOOKS / "explainers.py"))
    assert (tmp_path / "explainers.png").stat().st_size > 10_000
    assert (tmp_path / "perception.png").stat().st_size > 10_000
    assert list(cells["methods"]) == ["cam", "layer_cam"]
    assert "| layer_cam | 4 |" in capsys.readouterr().out
    assert {card.method for card in cells["cards"]} == set(cells["methods"])
