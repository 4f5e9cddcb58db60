"""Plans of segmentation and saliency: experiments that make them, and what they refuse."""

import runpy
from pathlib import Path

import pytest

from wsss_jax import cli
from wsss_jax.config import as_json
from wsss_jax.data import stores
from wsss_jax.datasets import synthetic
from wsss_jax.recipes.saliency import SaliencyPlan
from wsss_jax.recipes.segment import SegmentPlan

EXPERIMENTS = Path(__file__).resolve().parents[1] / "experiments"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("voc12_segment", SegmentPlan),
        ("voc12_animals_segment", SegmentPlan),
        ("voc12_c2amh", SaliencyPlan),
        ("voc12_animals_c2amh", SaliencyPlan),
    ],
)
def test_experiments_give_plans(name, kind):
    recipe = runpy.run_path(str(EXPERIMENTS / f"{name}.py"))["recipe"]
    plan = recipe(Path("data"), Path("weights"))
    assert isinstance(plan, kind) and plan.name == name and as_json(plan)
    with pytest.raises(ValueError, match="--weights"):
        recipe(Path("data"), None)


@pytest.mark.parametrize("path", sorted(EXPERIMENTS.glob("*.py")), ids=lambda path: path.stem)
def test_every_experiment_gives_a_plan_or_has_a_command_line(path):
    module = runpy.run_path(str(path))
    if "recipe" not in module:
        assert callable(module["main"])
        return
    plan = module["recipe"](Path("data"), Path("weights"))
    assert plan.name == path.stem and as_json(plan)


def test_an_experiment_may_be_any_plan(tmp_path, capsys):
    file = tmp_path / "small.py"
    file.write_text(
        "from wsss_jax.recipes.segment import SegmentPlan\n"
        "def recipe(data, weights):\n"
        "    return SegmentPlan(data, name='small')\n"
    )
    data = synthetic.write(tmp_path / "data", 6, 0, settings=synthetic.Scenes(size=40))
    with pytest.raises(SystemExit):
        cli.main(["run", str(file), "--data", str(data), "--out", str(tmp_path / "out")])
    assert "give a store of pseudo-masks" in capsys.readouterr().err


def test_a_teacher_is_one_of_two(tmp_path):
    data = synthetic.write(tmp_path / "data", 6, 0, settings=synthetic.Scenes(size=40))
    for plan in (SegmentPlan(data), SegmentPlan(data, tmp_path / "masks", truth=True)):
        with pytest.raises(ValueError, match="--truth"):
            plan.make(tmp_path / "out")


def test_saliency_plans_want_all_hints(tmp_path):
    data = synthetic.write(tmp_path / "data", 6, 0, settings=synthetic.Scenes(size=40))
    stores.create(tmp_path / "hints", holds="scores", classes=("a",), made_by={})
    plan = SaliencyPlan(data, tmp_path / "hints")
    with pytest.raises(ValueError, match="hint_weight"):
        plan.make(tmp_path / "out")
