"""For the site: tables and help texts out of the code, where a page has ``<!-- code: NAME -->``."""

import ast
import contextlib
import inspect
import io
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

os.environ |= {"COLUMNS": "88", "JAX_PLATFORMS": "cpu", "NO_COLOR": "1"}

from wsss_jax import cli, explain
from wsss_jax.backbones import BACKBONES
from wsss_jax.cli.table import VERBS
from wsss_jax.export.writers import WRITERS
from wsss_jax.ops.fuse import FUSIONS
from wsss_jax.systems import SYSTEMS
from wsss_jax.weights.known_weights import WEIGHTS

ROOT = Path(__file__).resolve().parents[1]
PLACE = re.compile(r"^<!-- code: (\w+) -->$", re.MULTILINE)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put each table in its place (MkDocs calls this for every page)."""
    return PLACE.sub(lambda found: MADE[found.group(1)](), markdown)


def networks() -> str:
    """Families of BACKBONES with their names."""
    families: dict[str, list[str]] = {}
    for name, made in BACKBONES.items():
        function = made.func if isinstance(made, partial) else made
        families.setdefault(function.__module__, []).append(name)
    rows = [(first_sentence(sys.modules[m]), code(names)) for m, names in families.items()]
    return table(("family", "names in `BACKBONES`"), rows)


def weights() -> str:
    """Everything that is known of weights that people can get."""
    rows = [
        (
            code([name]),
            code([one.network]),
            one.source,
            one.supervision,
            one.licence or "not stated",
        )
        for name, one in WEIGHTS.items()
    ]
    return table(("weights", "network", "from", "supervised by", "licence"), rows)


def systems() -> str:
    """Published learning problems."""
    rows = [(code([name]), first_sentence(entry.settings)) for name, entry in SYSTEMS.items()]
    return table(("system", "what is learned"), rows)


def explainers() -> str:
    """Explanation methods of both tables."""
    rows = [(code([name]), first_sentence(one)) for name, one in explain.EXPLAINERS.items()]
    rows += [
        (code([name]), first_sentence(one) + " Of a transformer's attention.")
        for name, one in explain.ATTENTION_EXPLAINERS.items()
    ]
    return table(("method", "map"), rows)


def fusions() -> str:
    """Closed-form fusion rules."""
    rows = [(code([name]), first_sentence(rule)) for name, rule in FUSIONS.items()]
    return table(("rule", "result"), rows)


def writers() -> str:
    """Formats of ``wsss export``."""
    rows = [(code([name]), one.holds, one.advice) for name, one in WRITERS.items()]
    return table(("format", "of", "what it is"), rows)


def verbs() -> str:
    """Each verb with its whole help."""
    parts = []
    for name, verb in VERBS.items():
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
            cli.main([name, "--help-all"])
        text = "\n".join(line.rstrip() for line in printed.getvalue().splitlines())
        parts.append(f"## wsss {name}\n{verb.summary}\n\n```text\n{text.strip()}\n```")
    return "\n\n".join(parts)


PUBLISHED = {"Source", "Expected"}
"""Fields of a recipe that repeats a paper."""


def published() -> str:
    """Recipes of papers: what is run on what, the paper's number and ours."""
    rows = []
    for name, fields in experiments():
        if fields.keys() >= PUBLISHED:
            expected, found, why = fields["Expected"].partition("Not run")
            source = fields["Source"].partition(":")[0]
            ours = f"not run{why}" if found else "see the file"
            rows.append((code([name]), fields[""], source, expected, ours))
    return table(("experiment", "what is run", "source", "expected there", "here"), rows)


def small() -> str:
    """Recipes that two processor cores finish."""
    found = [one for one in experiments() if not one[1].keys() >= PUBLISHED]
    return table(("experiment", "what is run"), [(code([n]), fields[""]) for n, fields in found])


def experiments() -> Iterable[tuple[str, Mapping[str, str]]]:
    """Name and the fields of the docstring of each file: "" is its first line."""
    for path in sorted((ROOT / "experiments").glob("*.py")):
        text = inspect.cleandoc(ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "")
        parts = re.split(r"(?:^|(?<=\s))(Source|Command|Hardware|Expected|Not run):", text)
        fields = {"": parts[0].split("\n\n")[0]}
        for key, value in zip(parts[1::2], parts[2::2], strict=True):
            if key == "Not run":
                fields["Expected"] = f"{fields.get('Expected', '')}Not run:{value}"
            else:
                fields[key] = value
        yield path.name, {k: one_line(v.split("\n\n")[0]) for k, v in fields.items()}


def first_sentence(thing: Any) -> str:
    """Of its docstring ("et al." ends none)."""
    line = one_line((inspect.getdoc(thing) or "").split("\n\n")[0])
    return re.split(r"(?<=[^l]\.)\s", line)[0]


def one_line(text: str) -> str:
    """Lines joined, reST's double quotes made Markdown's."""
    return " ".join(text.split()).replace("``", "`")


def code(names: Iterable[str]) -> str:
    """Names, as code."""
    return ", ".join(f"`{name}`" for name in names)


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """A table in Markdown."""
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(
        f"| {' | '.join(cell.replace('|', '&#124;') for cell in row)} |" for row in lines
    )


MADE: Mapping[str, Callable[[], str]] = {
    one.__name__: one
    for one in (networks, weights, systems, explainers, fusions, writers, verbs, published, small)
}
