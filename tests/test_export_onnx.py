"""Networks as ONNX files: answers, what they tell of themselves, and what is refused."""

import json
from importlib.util import find_spec

import jax
import numpy as np
import pytest

from wsss_jax import config
from wsss_jax.data import json_records
from wsss_jax.errors import UserError
from wsss_jax.run import folders
from wsss_jax.run.training import Training
from wsss_jax.stages.export import Export, command
from wsss_jax.stages.parts import export_onnx
from wsss_jax.systems import SYSTEMS, Classifier

extra = pytest.mark.skipif(
    find_spec("jax2onnx") is None or find_spec("onnxruntime") is None,
    reason="needs the extra onnx: pip install 'wsss-jax[onnx]'",
)
MODEL = Classifier("tiny")
CLASSES = ("cat", "dog", "cow")


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A finished run whose checkpoint is the random start."""
    folder = tmp_path / "run"
    record = {"settings": config.as_json(Training(MODEL)), "classes": CLASSES, "system": "vanilla"}
    json_records.write(folder / "settings.json", record)
    (folder / "finished").touch()

    def last_state(folder, template):
        made = SYSTEMS["vanilla"].make(MODEL, classes=len(CLASSES), steps=1)
        return jax.jit(made.init)(jax.random.key(0))

    monkeypatch.setattr(folders, "last_state", last_state)
    return folder


@extra
def test_a_file_answers_as_the_network_and_tells_what_it_is(run, tmp_path, capsys):
    onnxruntime = pytest.importorskip("onnxruntime")
    file = tmp_path / "network.onnx"
    command(run, file, settings=Export("onnx", size=(48, 64)))
    assert float(capsys.readouterr().out.split()[-3]) < 1e-4
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["classes"]) == list(CLASSES) and json.loads(about["size"]) == [48, 64]
    assert json.loads(about["supervision"])["learned_from"] == "image labels"
    logits, maps = session.run(None, {"image": np.ones((1, 48, 64, 3), np.float32)})
    assert [one.name for one in session.get_outputs()] == ["logits", "class_maps"]
    np.testing.assert_allclose(maps.mean(axis=(1, 2)), logits, atol=1e-5)
    assert str(tmp_path).encode() not in file.read_bytes()


def test_what_cannot_be_written_is_told(run, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="--format onnx"):
        command(run, tmp_path / "out")
    with pytest.raises(UserError, match="give --data"):
        command(tmp_path, tmp_path / "out")
    with pytest.raises(UserError, match="no run of"):
        command(tmp_path, tmp_path / "out", settings=Export("onnx"))

    def missing(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(export_onnx, "import_module", missing)
    with pytest.raises(UserError, match=r"pip install 'wsss-jax\[onnx\]'"):
        command(run, tmp_path / "out", settings=Export("onnx"))
