"""Strict JAX for every test: two virtual devices, no silent promotion, warnings are errors."""

import os

# XLA's CPU collectives deadlock on small hosts unless its thread pool is widened before the
# import of jax (jax 0.10, un-blocked loops of collectives).
os.environ.setdefault("NPROC", "16")
# Small programs that run once or twice: most of their time would be spent compiling them. The older
# emitters of jaxlib 0.10 compile a training step in a third of the time; later ones have no others.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0"
    + " --xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters"
)

from pathlib import Path

import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

SHARED = Path(__file__).resolve().parents[2] / "shared"

HEAVY = (
    "test_stages", "test_photographs", "test_combiner", "test_parallel", "test_faults",
    "test_reference_networks", "test_systems_fit", "test_notebooks", "test_learn_affinity",
    "test_segment", "test_classifier", "test_crf", "test_explain_full_grad",
)  # fmt: skip
"""Files of several expensive tests: begun first, so that two workers end at the same time."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Heavy files first; ``--no-loadscope-reorder`` makes pytest-xdist keep this order."""
    place = {name: number for number, name in enumerate(HEAVY)}
    items.sort(key=lambda item: place.get(item.path.stem, len(HEAVY)))


@pytest.fixture
def shared() -> Path:
    """The folder of real photographs and public weights that lies beside the clone."""
    if not (SHARED / "README.md").is_file():
        pytest.skip(f"needs real photographs or weights: {SHARED.name}/ is not beside this clone")
    return SHARED
