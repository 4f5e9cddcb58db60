"""What XLA is told before its first computation: to compute right, and to keep what it compiled.

One option of its CPU compiler is needed, without which it silently computes nonsense:
jaxlib 0.10.2 to 0.12 hand some reductions to a library, YNNPACK, and get back wrong values: the
maximum over the cells of relu(relu(norm(x)) @ a), for one, comes out the same for every image of a
batch (tests/test_xla.py; others: github.com/jax-ml/jax/issues/39103). XLA reads the option when the
first computation starts, so ``import wsss_jax`` sets it before. A choice of the user's stays.
"""

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path

VARIABLE = "XLA_FLAGS"
FLAG, SETTING = "--xla_cpu_experimental_ynn_fusion_type", "-reduce"
FAULTY: tuple[tuple[int, ...], tuple[int, ...]] = ((0, 10, 2), (0, 13))
"""First and first unaffected version. An XLA that does not know the option refuses to start."""


def environment(current: Mapping[str, str], jaxlib: str) -> dict[str, str]:
    """The environment with the option, where this version of jaxlib needs it."""
    version = tuple(int(part) for part in jaxlib.split(".")[:3] if part.isdecimal())
    flags = current.get(VARIABLE, "")
    if not FAULTY[0] <= version < FAULTY[1] or FLAG in flags:
        return dict(current)
    return {**current, VARIABLE: f"{flags} {FLAG}={SETTING}".lstrip()}


def keep_reductions_right() -> None:
    """Set the option for this process and those it starts."""
    os.environ.update(environment(os.environ, jaxlib_version()))


def jaxlib_version() -> str:
    """The version of jaxlib that is installed, read from its own file.

    ``importlib.metadata`` takes longer to import than all else that happens before a command can
    heed signals, and jaxlib itself much longer.
    """
    found = importlib.util.find_spec("jaxlib")
    assert found is not None and found.origin is not None
    text = Path(found.origin).with_name("version.py").read_text(encoding="utf-8")
    return text.partition('_version = "')[2].partition('"')[0]


def keep_compiled() -> None:
    """Keep compiled programs in the user's cache folder, for this process and later ones.

    A command that goes on where it was stopped then starts sooner (benchmarks/compiling.py). A
    folder named by JAX_COMPILATION_CACHE_DIR stays; JAX_ENABLE_COMPILATION_CACHE=false keeps none.
    """
    import jax  # not before: the variable above must be set first

    if not jax.config.values["jax_compilation_cache_dir"]:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(base / "wsss_jax" / "compiled"))
