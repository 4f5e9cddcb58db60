"""The benchmark of accelerators runs on any processor, at tiny sizes (benchmarks/gpu.py)."""

import importlib.util
import sys
from pathlib import Path

PATH = Path(__file__).resolve().parents[1] / "benchmarks/gpu.py"


def test_every_part_runs_at_tiny_sizes(monkeypatch):
    specification = importlib.util.spec_from_file_location("gpu", PATH)
    assert specification is not None and specification.loader is not None
    gpu = importlib.util.module_from_spec(specification)
    monkeypatch.setitem(sys.modules, "gpu", gpu)
    specification.loader.exec_module(gpu)
    rows = gpu.measure([], 0.0, tiny=True)
    assert [row.name for row in rows] == ["tiny_32", "walk", "crf"]
    assert all(row.images_per_second > 0 for row in rows)
    assert gpu.table(rows).count("\n") == 4
    assert gpu.rate(lambda: None, 3, 0.0) > 0
