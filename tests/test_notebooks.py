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


def test_combiner_inputs_runs_at_its_smallest(headless, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MODE", "tiny")
    monkeypatch.setenv("OUT", str(tmp_path))
    cells = runpy.run_path(str(NOTEBOOKS / "combiner_inputs.py"))
    assert (tmp_path / "trust.png").is_file() and (tmp_path / "ablation.png").is_file()
    text, said = (tmp_path / "ablation.md").read_text(), capsys.readouterr().out
    for table in cells["tables"]:
        assert f"## {table.title}" in text and f"## {table.title}" in said
        for row in table.rows:
            assert f"| {row.name} |" in text
    # One training and one fine-tuning; the other rows are that combiner, or none that learns.
    assert [path.parts[-3] for path in tmp_path.glob("variants/*/seed_0/run")] == ["all"]
    assert (tmp_path / "variants" / "k_1" / "seed_0" / "tuned" / "finished").is_file()
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
