"""Notebooks run from top to bottom as scripts, on drawn scenes; each has its .ipynb."""

import json
import re
import runpy
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from flax import nnx

from wsss_jax.models import build
from wsss_jax.recipes import photographs_plan
from wsss_jax.recipes.photographs_plan import Sizes
from wsss_jax.weights import loading

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
SMALL = Sizes(64, 32, 1, 4, (1.0,), False, 12, 32)


@pytest.fixture(autouse=True)
def headless(monkeypatch):
    before = plt.get_backend()
    plt.switch_backend("agg")
    monkeypatch.setattr(plt, "show", lambda: None)
    yield
    plt.close("all")
    plt.switch_backend(before)


@pytest.fixture(scope="module")
def shared_folder(tmp_path_factory):
    """What one notebook has trained the next one takes."""
    return tmp_path_factory.mktemp("notebooks")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "tiny.npz"
    loading.save(
        build.backbone("tiny", rngs=nnx.Rngs(0), output_stride=8), path, {"network": "tiny"}
    )
    return path


def run(name, monkeypatch, **settings):
    for key, value in settings.items():
        monkeypatch.setenv(key, str(value))
    return runpy.run_path(str(NOTEBOOKS / f"{name}.py"))


def test_walk_and_crf_find_more_of_the_creature(monkeypatch):
    monkeypatch.delenv("PHOTOGRAPH", raising=False)
    cells = run("walk_and_crf", monkeypatch)
    truth, ious = cells["creature"], []
    for mask in cells["found"].values():
        ious.append(((mask == 1) & truth).sum() / ((mask == 1) | truth).sum())
    assert ious[0] < ious[1] < ious[2] and len(plt.get_fignums()) == 4


def test_explainers_show_and_judge_every_method_asked(shared_folder, monkeypatch, capsys):
    few = {"IMAGES": "24", "EPOCHS": "1", "METHODS": "cam layer_cam"}
    cells = run("explainers", monkeypatch, OUT=shared_folder, **few)
    assert list(cells["maps"]) == list(cells["shares"]) == ["cam", "layer_cam"]
    assert all(maps.shape == (12, 12, len(cells["classes"])) for maps in cells["maps"].values())
    assert "2 methods on 96 × 96 pixels" in capsys.readouterr().out


def test_combiner_inputs_are_left_out_one_by_one(shared_folder, weights, monkeypatch, capsys):
    few = {
        "IMAGES": "24",
        "EPOCHS": "1",
        "ROWS": "2",
        "FROZEN": f"--weights {weights} --taps 1 2 3",
    }
    cells = run("combiner_inputs", monkeypatch, OUT=shared_folder, **few)
    assert list(cells["found"])[2:] == list(cells["rows"])[:2] and len(cells["rows"]) == 6
    assert all(0 < mean < 1 for mean in cells["found"].values())
    assert "without saliency" in capsys.readouterr().out


def test_own_photographs_get_masks_from_a_table(tmp_path, weights, monkeypatch, capsys):
    monkeypatch.setattr(photographs_plan, "sizes_for", lambda count, *, quick: SMALL)
    cells = run("own_photographs", monkeypatch, OUT=tmp_path, IMAGES="8", WEIGHTS=weights)
    assert len(list((tmp_path / "mine" / "masks").glob("*.png"))) == len(cells["unsure"]) == 8
    assert np.isfinite(cells["judged"].mean) and "0 problems" in capsys.readouterr().out


def cells_of(script):
    """Kind and text of each cell of a script in jupytext's percent format."""
    found = []
    for cell in re.split(r"^# %%", script, flags=re.MULTILINE)[1:]:
        kind, _, text = cell.partition("\n")
        if "[markdown]" in kind:
            text = re.sub(r"^# ?", "", text, flags=re.MULTILINE)
        found.append(("markdown" if "[markdown]" in kind else "code", text.strip()))
    return found


@pytest.mark.parametrize("script", sorted(NOTEBOOKS.glob("*.py")), ids=lambda path: path.stem)
def test_a_notebook_is_its_script_with_small_outputs(script):
    whole = script.with_suffix(".ipynb").read_text(encoding="utf-8")
    cells = json.loads(whole)["cells"]
    paired = [(cell["cell_type"], "".join(cell["source"]).strip()) for cell in cells]
    assert paired == cells_of(script.read_text(encoding="utf-8"))
    assert all(cell["execution_count"] for cell in cells if cell["cell_type"] == "code")
    assert '"output_type": "error"' not in whole and "image/png" in whole
    assert len(whole) < 500_000
