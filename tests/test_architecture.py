"""The layers hold: every import points down, files and functions stay small, nothing unpickles."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "wsss_jax"
RANK = {
    "types": 0, "config": 0, "errors": 0, "memory": 0, "xla": 0, "signals": 0,
    "ops": 1, "formats": 1,
    "losses": 2,
    "crf": 2, "data": 2, "weights": 2,
    "datasets": 3, "backbones": 3,
    "priors": 4, "batches": 4, "export": 4, "models": 4,
    "explain": 5, "train": 5, "report": 5,
    "systems": 6,
    "run": 7,
    "combiner": 8,
    "stages": 9,
    "recipes": 10, "study": 10, "api": 10,
    "cli": 11,
}  # fmt: skip
FILES = ("data", "datasets", "priors", "batches", "export")
NETWORKS = ("weights", "backbones", "models")
SEPARATE = (
    *({one, other} for one in (*FILES, "crf") for other in NETWORKS),
    {"crf", "data"},
    *({"losses", other} for other in ("crf", "data", "weights")),
    {"priors", "batches"},
    {"priors", "export"},
    {"batches", "export"},
    {"explain", "train"},
    {"ops", "formats"},
    {"recipes", "study"},
    {"recipes", "api"},
    {"api", "study"},
)
"""Neither of the two imports the other, whatever their ranks."""
NNX_HOME = (
    "wsss_jax/backbones/",
    "wsss_jax/models/",
    "wsss_jax/weights/",
    "wsss_jax/train/state.py",
)
MAX_FILE_LINES, MAX_FUNCTION_LINES, MAX_FOLDER_FILES = 400, 60, 24


def sources() -> list[Path]:
    return sorted(
        path
        for folder in ("wsss_jax", "experiments", "benchmarks", "tests")
        for path in (ROOT / folder).rglob("*.py")
    )


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.lineno, node.module
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def part(module: str) -> str | None:
    """The layer a module belongs to: wsss_jax.data.stores to data."""
    pieces = module.split(".")
    return pieces[1] if pieces[0] == "wsss_jax" and len(pieces) > 1 else None


def upward(path: Path, source: str) -> list[str]:
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if own not in RANK:
        return []
    found = []
    for line, module in imports(ast.parse(source)):
        other = part(module)
        if other is None or other not in RANK or other == own:
            continue
        apart = any({own, other} == pair for pair in SEPARATE)
        if RANK[other] > RANK[own] or apart:
            found.append(f"{path.relative_to(ROOT)}:{line} imports {module} (upward)")
    return found


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: p.stem)
def test_imports_point_down(path):
    assert not upward(path, path.read_text())


def test_an_upward_import_is_found():
    assert upward(PACKAGE / "ops/x.py", "from wsss_jax.data import stores")
    assert upward(PACKAGE / "models/x.py", "import wsss_jax.data.stores")
    assert not upward(PACKAGE / "data/x.py", "from wsss_jax.types import Sample")


def test_no_folder_is_a_hall():
    for folder in (path for path in PACKAGE.rglob("*") if path.is_dir()):
        assert len(list(folder.glob("*.py"))) <= MAX_FOLDER_FILES, folder


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_functions_stay_small_and_safe(path):
    source = path.read_text()
    name = str(path.relative_to(ROOT))
    problems = []
    if len(source.splitlines()) > MAX_FILE_LINES:
        problems.append(f"{name}: {len(source.splitlines())} lines, at most {MAX_FILE_LINES}")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            lines = (node.end_lineno or 0) - node.lineno + 1
            if lines > MAX_FUNCTION_LINES:
                problems.append(f"{name}:{node.lineno} {node.name} has {lines} lines")
        if isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names):
            problems.append(f"{name}:{node.lineno} imports *")
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            refused = isinstance(node.value, ast.Constant) and node.value.value is False
            if not refused:
                problems.append(f"{name}:{node.value.lineno} allows pickle")
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            problems.append(f"{name}:{node.lineno} swallows every error")
    if name.startswith("wsss_jax/") and not name.startswith(NNX_HOME):
        problems += [
            f"{name}:{line} imports {module}"
            for line, module in imports(ast.parse(source))
            if module.startswith("flax")
        ]
    assert not problems
