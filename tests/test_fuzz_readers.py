"""Changed bytes of every kind of file end in a value or one error (benchmarks/fuzz_readers.py)."""

import importlib.util
import sys
from pathlib import Path

PATH = Path(__file__).resolve().parents[1] / "benchmarks/fuzz_readers.py"


def test_no_reader_fails_on_changed_bytes():
    specification = importlib.util.spec_from_file_location("fuzz_readers", PATH)
    assert specification is not None and specification.loader is not None
    fuzz_readers = importlib.util.module_from_spec(specification)
    sys.modules["fuzz_readers"] = fuzz_readers
    specification.loader.exec_module(fuzz_readers)
    results = fuzz_readers.fuzz(20, seed=1)
    assert len(results) >= 17
    assert not {name: found.failures for name, found in results.items() if found.failures}
