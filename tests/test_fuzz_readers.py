"""Changed bytes of every kind of file end in a value or one error (benchmarks/fuzz_readers.py)."""

import importlib
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


# The standard library warns of escapes in the texts of old pickles, and reads on; so does Pillow of
# damaged tags of TIFF.
@pytest.mark.filterwarnings("ignore::UserWarning:PIL.TiffImagePlugin")
@pytest.mark.filterwarnings("ignore:invalid escape sequence:DeprecationWarning")
def test_no_reader_fails_on_changed_bytes(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    fuzz_readers = importlib.import_module("fuzz_readers")
    results = dict(fuzz_readers.fuzz(15, seed=1))
    assert len(results) >= 40
    assert not {name: found.failures for name, found in results.items() if found.failures}
