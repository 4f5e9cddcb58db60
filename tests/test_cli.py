"""What a user types: help, mistakes, exit codes, and the verbs on a handful of scenes."""

import errno
import json
import re
import subprocess
import sys

import numpy as np
import pytest
import toy_commands
from toy_commands import typed

from wsss_jax import errors, memory
from wsss_jax.cli import command_line, pages, table
from wsss_jax.cli.table import Verb
from wsss_jax.data import stores
from wsss_jax.datasets import synthetic
from wsss_jax.datasets.table import open_dataset
from wsss_jax.types import ScoreMaps


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return synthetic.write(tmp_path_factory.mktemp("scenes"), 12, 0)


@pytest.mark.parametrize("verb", table.VERBS)
def test_every_verb_has_help_that_fits_a_screen(capsys, monkeypatch, verb):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = typed(capsys, verb, "--help")
    assert code == 0 and f"wsss {verb}" in out and len(out.splitlines()) <= 60
    missing = [
        name
        for name in table.VERBS[verb].everyday.split()
        if name not in ("*", "run", "maps", "masks") and f"--{name} " not in out.replace(",", " ")
    ]
    assert verb == "run" or not missing


def test_help_lists_the_names_of_tables_and_help_all_every_flag(capsys):
    short, whole = (typed(capsys, "refine", flag)[1] for flag in ("--help", "--help-all"))
    assert "auxsegnet_saliency" in short and "pnoc_masks" in short
    assert "--walk.sigma-space" in whole and "--walk.sigma-space" not in short
    assert "more settings: wsss refine --help-all" in short


@pytest.mark.parametrize("command", table.commands())
def test_help_that_is_written_down_is_that_of_the_verb(monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")
    made = pages.made(command, table.commands()[command])
    written = json.loads(pages.FILE.read_text("utf-8"))[command]
    for page, kept in zip(made, written, strict=True):
        # Another version of tyro may draw other lines around the same words.
        words, known = re.findall(r"[\w.-]+", page), re.findall(r"[\w.-]+", kept)
        assert words == known, "write it anew: python -m wsss_jax.cli.pages"


def test_help_and_what_is_mistyped_import_no_jax_whatever_the_verb():
    code = (
        "import sys\n"
        "from wsss_jax.cli import main, table\n"
        "def ended(*arguments):\n"
        "    try: main(arguments)\n"
        "    except SystemExit as end: return end.code\n"
        "    return 0\n"
        "for command in (*map(str.split, table.commands()), ['weights']):\n"
        "    assert ended(*command, '--help') == ended(*command, '--help-all') == 0, command\n"
        "    assert ended(*command, '--wrong-flag', '3') == 2, command\n"
        "    assert ended(*command[:-1], command[-1] + 'x') == 2, command\n"
        "assert ended('--help') == ended('--version') == 0 and ended('--verison') == 2\n"
        "assert ended('train', '--data', 'x') == ended('train', '--epochs', 'x') == 2\n"
        "heavy = {'jax', 'flax', 'numpy', 'tyro', 'PIL', 'grain', 'tensorflow_datasets'}\n"
        "print('loaded', sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "loaded []" in done.stdout, done.stderr


def test_a_check_imports_no_jax(scenes):
    code = (
        "import sys; from wsss_jax.cli import main; main(['check', sys.argv[1]])\n"
        "print('loaded', sorted({'jax', 'grain', 'tensorflow_datasets'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(scenes)], capture_output=True, text=True)
    assert "loaded []" in done.stdout, done.stderr


def test_a_mistyped_flag_is_one_line_that_names_the_nearest(capsys):
    for typo, near in (("--epoch", "--epochs"), ("--model.bakbone=x", "--model.backbone")):
        code, out, err = typed(capsys, "train", "--data", "x", "--out", "y", typo, "3")
        assert code == 2 and not out and len(err.splitlines()) == 1
        assert f"unknown flag {typo.split('=')[0]!r}; did you mean {near!r}?" in err
    code, _, err = typed(capsys, "train", "--batch_size=3", "--hosts.count", "2", "--wrong")
    assert code == 2 and "unknown flag '--wrong'" in err


@pytest.mark.parametrize(
    ("verb", "wrong", "told"),
    [
        ("train", "", "give --out and --data"),
        ("train", "--data=x", "give --out"),
        ("train", "--epochs many", "--epochs is 'many', wanted a whole number"),
        ("refine", "x --walk.beta=ten", "--walk.beta is 'ten', wanted a number"),
        ("train", "--epochs", "--epochs is '', wanted a whole number"),
        ("refine", "x --method crv", "--method is 'crv'; did you mean 'crf'?"),
        ("train", "--model.backbone tinny", "--model.backbone is 'tinny'; did you mean 'tiny'?"),
        ("train", "--layout x", "--layout is 'x'; there are: voc, folder, class_folders"),
    ],
)
def test_a_missing_flag_and_a_wrong_value_are_one_line(capsys, verb, wrong, told):
    code, out, err = typed(capsys, verb, *wrong.split())
    assert code == 2 and not out and len(err.splitlines()) == 1
    assert err.startswith(f"wsss {verb}: {told}")


def test_settings_of_what_does_not_run_are_refused(capsys, tmp_path):
    told = {
        "--crf.* does nothing with --method walk": ("refine", "--crf.preset", "deeplab"),
        "a rule does nothing with --run": ("combine", "--rule", "max", "--run", "r"),
        "are not for a rule": ("combine", "--no-learn"),
    }
    synthetic.write(tmp_path / "data", 10, 0)
    for message, (verb, *flags) in told.items():
        code, _, error = typed(
            capsys,
            verb,
            tmp_path / "s",
            "--data",
            tmp_path / "data",
            "--out",
            tmp_path / "o",
            *flags,
        )
        assert code == 1 and message in error


@pytest.mark.parametrize("command", table.commands())
def test_values_that_a_verb_takes_by_default_pass(command):
    for flag, kind, text in pages.Page(*json.loads(pages.FILE.read_text())[command]).entries():
        default = re.search(r"\(default: (\S+)\)$", text)
        if default is not None:
            pages.check(command, flag, default.group(1), kind, text)


@pytest.mark.parametrize(
    ("problem", "told"),
    [
        (errors.UserError("label 'cta': did you mean 'cat'?"), "error: label 'cta'"),
        (PermissionError(13, "Permission denied", "runs/x"), "error: runs/x: Permission denied"),
        (OSError(errno.ENOSPC, "No space left on device"), "error: No space left"),
        (ValueError("operands could not be broadcast"), None),
        (OSError("something of our own"), None),
        (KeyError("classes"), None),
    ],
)
def test_what_the_user_can_put_right_is_one_line_and_our_mistakes_keep_their_traceback(
    capsys, monkeypatch, problem, told
):
    def fail() -> None:
        raise problem

    verb = Verb("a verb that fails", "toy_commands:fail")
    monkeypatch.setattr(toy_commands, "fail", fail, raising=False)
    monkeypatch.setattr(table, "VERBS", {"fail": verb})
    if told is None:
        with pytest.raises(type(problem)):
            typed(capsys, "fail")
        return
    code, _, err = typed(capsys, "fail")
    assert code == 1 and err.startswith(told) and len(err.splitlines()) == 1
    monkeypatch.setenv("WSSS_DEBUG", "1")
    with pytest.raises(type(problem)):
        typed(capsys, "fail")


@pytest.mark.parametrize(("returned", "code"), [(None, 0), (0, 0), (3, 3)])
def test_a_command_may_end_with_images_left_out(capsys, monkeypatch, returned, code):
    monkeypatch.setattr(toy_commands, "end", lambda: returned, raising=False)
    monkeypatch.setattr(table, "VERBS", {"end": Verb("ends", "toy_commands:end")})
    assert typed(capsys, "end")[0] == code


def test_warnings_of_xla_stay_off_the_terminal_unless_they_are_asked_for():
    environment = {"GRPC_VERBOSITY": "INFO"}
    command_line.quiet(environment)
    assert environment["TF_CPP_MIN_LOG_LEVEL"] == "3" and environment["GRPC_VERBOSITY"] == "INFO"


def test_a_mistyped_flag_names_the_nearest(capsys, tmp_path):
    wrong = ("refine", "x", "--data", "y", "--out", "z", "--walk.step", "3")
    code, out, err = typed(capsys, *wrong)
    assert code == 2 and "--walk.steps" in out + err


def test_an_unknown_verb_is_wrong_usage_and_gets_its_neighbour(capsys):
    code, _, err = typed(capsys, "explian")
    assert code == 2 and "unknown verb 'explian'; did you mean 'explain'?" in err
    assert typed(capsys)[0] == 2


def test_checking_tells_by_its_exit_code(capsys, scenes, tmp_path):
    code, out, _ = typed(capsys, "check", scenes)
    assert code == 0 and "12 images, 0 problems" in out
    broken = synthetic.write(tmp_path / "broken", 4, 0)
    next((broken / "images").iterdir()).unlink()
    code, out, _ = typed(capsys, "check", broken)
    assert code == 1 and "problem" in out


@pytest.mark.parametrize(
    "arguments",
    [
        ("evaluate", "nowhere", "--data", "DATA"),
        ("explain", "nowhere", "--data", "DATA", "--out", "OUT"),
        ("refine", "nowhere", "--data", "DATA", "--out", "OUT"),
        ("run", "nowhere.py", "--data", "DATA"),
        ("train", "--data", "DATA", "--out", "OUT", "--batch-size", "1000"),
        ("train", "--data", "DATA", "--out", "OUT", "--model.head", "tinny"),
    ],
    ids=lambda a: a[0],
)
def test_bad_input_gives_one_message_and_exit_code_1(capsys, scenes, tmp_path, arguments):
    places = {"DATA": scenes, "OUT": tmp_path / "out"}
    code, _, err = typed(capsys, *(places.get(part, part) for part in arguments))
    assert code == 1 and err.startswith("error: ") and "Traceback" not in err


def drawn_maps(folder, data):
    """A store of score maps for the labels of all scenes, from noise."""
    source = open_dataset(data, split="all")
    store = stores.create(folder, holds="scores", classes=source.classes.names, made_by={})
    rng = np.random.default_rng(0)
    for id in source.ids:
        classes = np.flatnonzero(source.labels(id)).astype(np.int32)
        scores = rng.random((24, 24, len(classes)), np.float32)
        store.put_scores(id, ScoreMaps(scores, classes, source.size(id), scores.max((0, 1))))


def test_stores_go_through_the_verbs_one_by_one(capsys, scenes, tmp_path):
    data = ("--data", scenes, "--split", "val")
    maps, cue, walked = tmp_path / "maps", tmp_path / "cue", tmp_path / "walked"
    fused, page = tmp_path / "fused", tmp_path / "page.html"
    drawn_maps(maps, scenes)
    assert typed(capsys, "import", scenes / "saliency", *data, "--out", cue)[0] == 0
    assert typed(capsys, "refine", maps, *data, "--out", walked, "--walk.steps", 2)[0] == 0
    cued = ("--saliency", cue, "--rule", "median")
    assert typed(capsys, "combine", maps, walked, *data, "--out", fused, *cued)[0] == 0
    assert typed(capsys, "masks", maps, "--out", tmp_path / "masks")[0] == 0
    assert stores.open_store(tmp_path / "masks").ids() == stores.open_store(maps).ids()
    code, _, err = typed(capsys, "masks", tmp_path / "masks", "--out", tmp_path / "no")
    assert code == 1 and "holds masks" in err
    code, out, _ = typed(capsys, "evaluate", maps, fused, *data, "--out", tmp_path)
    assert code == 0 and (tmp_path / "results.json").exists() and "fused" in out
    assert "against the first store, both at fixed" in " ".join(out.split())
    code, out, _ = typed(capsys, "evaluate", maps, fused, *data, "--tuned-reference")
    assert code == 0 and "first store at its best" in " ".join(out.split())
    code, _, err = typed(capsys, "evaluate", maps, *data, "--only", "beetles")
    assert code == 1 and "did you mean" in err
    assert typed(capsys, "report", maps, fused, *data, "--out", page)[0] == 0 and page.exists()
    code, _, err = typed(capsys, "combine", maps, cue, *data, "--out", tmp_path / "no")
    assert code == 1 and "--saliency" in err
    # What cannot be meant is said before anything is written, by a rule and by what learns alike.
    learned = ("--run", tmp_path / "run", "--out", tmp_path / "no")
    code, _, err = typed(capsys, "combine", maps, cue, *data, *learned)
    assert code == 1 and "--saliency" in err
    code, _, err = typed(capsys, "combine", maps, *data, *learned, "--saliency", walked)
    assert code == 1 and "one class-agnostic map as saliency" in err
    for verb in ("combine", "evaluate", "report"):
        code, _, err = typed(capsys, verb, *data, "--out", tmp_path / "no")
        assert code == 1 and "no store is named" in err
    code, _, err = typed(
        capsys,
        "combine",
        maps,
        *data,
        "--out",
        fused,
        "--learn-split",
        "val",
        "--combining.labelled",
        2,
    )
    assert code in (1, 2) and "name the folder of its run (--run)" in " ".join(err.split())
    assert not (tmp_path / "no").exists() and not (tmp_path / "run").exists()


def test_an_experiment_is_a_file_whose_settings_flags_can_change(capsys, scenes, tmp_path):
    file = tmp_path / "small.py"
    file.write_text(
        "from wsss_jax.recipes import demo\n"
        "def recipe(data, weights):\n"
        "    return demo.recipe(data)\n"
    )
    code, out, _ = typed(capsys, "run", file, "--data", scenes, "--help")
    assert code == 0 and "--systems.fine.epochs" in out
    code, out, err = typed(capsys, "run", file, "--data", scenes, "--galery", "3")
    assert code == 2 and "--gallery" in out + err
    code, _, err = typed(capsys, "run", file, "--data", scenes, "--train-only", "fime")
    assert code == 1 and "did you mean 'fine'" in err
    file.write_text(
        "from wsss_jax.recipes.segment import SegmentPlan\n"
        "def recipe(data, weights):\n"
        "    return SegmentPlan(data)\n"
    )
    code, _, err = typed(capsys, "run", file, "--data", scenes, "--train-only", "fine")
    assert code == 1 and "no recipe of several systems" in err


def test_large_pages_are_asked_for_once():
    first = memory.environment({"PATH": "x"})
    assert first[memory.VARIABLE] == memory.SETTING and first["PATH"] == "x"
    assert memory.environment(first) == first
    other = memory.environment({memory.VARIABLE: "glibc.malloc.check=1"})
    assert other[memory.VARIABLE] == f"glibc.malloc.check=1:{memory.SETTING}"
