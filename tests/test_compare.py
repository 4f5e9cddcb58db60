"""Runs side by side, and the curves that TensorBoard reads."""

import importlib.util
import json

import jax
import pytest
from toy_commands import typed
from toy_learning import ToyBatches, linear_system

from wsss_jax.data import json_records
from wsss_jax.errors import UserError
from wsss_jax.stages import compare
from wsss_jax.train.loop import Loop, fit
from wsss_jax.train.optimizers import Optim, rate


def run(folder, losses, seed=0, **parts):
    """A folder as training leaves it."""
    folder.mkdir(parents=True)
    settings = {
        "settings": {"seed": seed, "optim": {"name": "sgd"}},
        "versions": {"jax": str(seed)},
    }
    json_records.write(folder / "settings.json", settings)
    lines = [json.dumps({"step": n + 1, "loss": v, "skipped": 0}) for n, v in enumerate(losses)]
    (folder / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 9, "lo']))
    return folder


def result(folder, miou):
    one = {"name": "cam", "split": "val", "fixed": {"miou": miou}}
    content = {"results": [one], "recipe": {"name": folder.name, "systems": {"a": 1}}}
    (folder / "results.json").write_text(json.dumps(content))


def test_only_what_differs_is_shown_and_curves_share_a_scale(tmp_path, capsys):
    a, b = run(tmp_path / "a", [4, 2, 0]), run(tmp_path / "b", [4, 3], seed=1)
    code, out, _ = typed(capsys, "compare", a, b)
    assert code == 0 and "seed" in out and "optim" not in out and "versions" not in out
    assert "checksum" not in out
    assert "4 … 0 at 3" in out and "4 … 3 at 2" in out and "skipped" not in out
    assert "████████▅▅▅▅▅▅▅▅▁" in out and "████████▆ " in out and "mIoU" not in out


def test_whole_runs_are_compared_part_by_part(tmp_path):
    for name, miou in (("a", 0.5), ("b", 0.6)):
        run(tmp_path / name / "run_tiny", [1, 0])
        result(tmp_path / name, miou)
    run(tmp_path / "b" / "run_more", [1, 0])
    found = [compare.read_run(tmp_path / name, name) for name in "ab"]
    settings, results = compare.settings_table(found), compare.results_table(found)
    assert [list(column.cells) for column in settings.columns] == [
        ["run_more", "recipe/name"], ["–", "a"], ["yes", "b"],
    ]  # fmt: skip
    assert [list(column.cells) for column in results.columns] == [
        ["cam on val"],
        ["50.0"],
        ["60.0"],
    ]


def test_steps_without_a_loss_are_no_points(tmp_path):
    found = compare.read_run(run(tmp_path / "a", [4, float("nan"), 2]), "a")
    assert found.curves["loss"] == [(1, 4.0), (3, 2.0)]


def test_a_curve_has_one_character_for_each_share_of_the_steps():
    points = [(step, float(step)) for step in range(1, 13)]
    drawn = compare.sparkline(points, 24, (1.0, 12.0))
    assert len(drawn) == compare.WIDTH // 2 and drawn[0] == "▁" and drawn[-1] == "█"
    assert compare.sparkline([(1, 2.0)], 1, (2.0, 2.0)) == "▅"


def test_names_tell_folders_apart_and_no_run_is_told(tmp_path):
    assert compare.short_names([tmp_path / "x/a", tmp_path / "y/a"]) == ["x/a", "y/a"]
    with pytest.raises(UserError, match="no run"):
        compare.command((tmp_path, tmp_path))
    with pytest.raises(UserError, match="alone"):
        compare.command((tmp_path,))


def test_the_learning_rate_of_each_batch_is_a_number():
    poly = rate(Optim(learning_rate=0.1, power=1.0, accumulate=2), 8)
    assert [round(poly(step), 6) for step in (0, 1, 2, 7)] == [0.1, 0.1, 0.075, 0.025]


@pytest.mark.skipif(
    importlib.util.find_spec("tensorboard") is None
    or importlib.util.find_spec("tensorboardX") is None,
    reason="TensorBoard or tensorboardX is not installed: pip install tensorboard 'wsss-jax[tb]'",
)
@pytest.mark.filterwarnings("ignore")
def test_tensorboard_reads_the_curves_of_a_run_that_went_on(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for steps in (4, 6):
        loop = Loop(steps, save_every=2, log_every=1, rate=lambda step: 0.1 / (step + 1))
        fit(linear_system(), ToyBatches(), loop, folder=tmp_path, key=jax.random.key(0))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    read = EventAccumulator(str(tmp_path)).Reload()
    assert {"loss", "learning_rate", "images_per_second"} <= set(read.Tags()["scalars"])
    for name in ("loss", "learning_rate"):
        curve = [(event.step, event.value) for event in read.Scalars(name)]
        assert curve == [(line["step"], pytest.approx(line[name])) for line in lines]
