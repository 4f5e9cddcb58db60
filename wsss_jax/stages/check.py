"""What ``wsss check`` prints: one line for each kind of finding, and what to do. No jax here."""

from collections.abc import Iterable, Iterator
from types import MappingProxyType

from wsss_jax.datasets.check import Findings, Problem

EXAMPLES = 3
"""Photographs or files that are named of each kind."""

_WIDEST = 160

REMEDIES = MappingProxyType({
    "bad image": "replace or delete the photographs that cannot be read",
    "bad labels": "correct the labels of these photographs",
    "bad list": "save these lists as text, one photograph a line",
    "bad mask": "save these masks as PNG of class numbers",
    "data set": "see the message; docs/own-photographs.md shows the layouts of data sets",
    "duplicate id": "keep one of these entries",
    "empty list": "fill or delete what is empty",
    "mask and labels": "correct the masks or the labels of these photographs",
    "mask size": "make each mask as large as its photograph",
    "mask values": "write 0 for background, 1 for the first class, 255 for unknown",
    "masks and labels": "correct the numbering of the masks; until then evaluation is refused",
    "missing image": "add the photographs, or remove them from lists and labels",
    "missing labels": "add labels; a photograph of no class has an empty entry",
    "stray mask": "name masks like their photographs",
    "unread picture": "save these pictures as JPEG or PNG",
    "unsafe id": "keep photographs inside the folder of the data set",
})  # fmt: skip
"""What to do about problems, by their kind."""


def lines(findings: Findings) -> Iterator[str]:
    """What is printed: what was read, notices, problems, and what to do."""
    if findings.classes:
        shown = findings.shown or [0] * len(findings.classes)
        counts = [f"{name} {count}" for name, count in zip(findings.classes, shown, strict=True)]
        more = f" … ({len(counts)})" if len(counts) > 30 else ""
        yield (
            f"{findings.layout}: {findings.images} photographs, {findings.masks} true masks; "
            f"classes: {', '.join(counts[:30])}{more}; no class {findings.none}"
        )
    yield from (f"notice  {line}" for line in grouped(findings.notices))
    yield from (f"problem {line}" for line in grouped(findings.problems))
    counts = {"image": findings.images, "problem": len(findings.problems)}
    counts["notice"] = len(findings.notices)
    yield ", ".join(f"{n} {name}{'s' * (n != 1)}" for name, n in counts.items())
    kinds = dict.fromkeys(problem.kind for problem in findings.problems)
    if kinds:
        yield "to do:"
        yield from (f"  {kind}: {REMEDIES.get(kind, 'see the message')}" for kind in kinds)
        yield "  then run this check again"


def grouped(found: Iterable[Problem]) -> Iterator[str]:
    """One line for each kind: how many, and three examples."""
    kinds: dict[str, list[Problem]] = {}
    for problem in found:
        kinds.setdefault(problem.kind, []).append(problem)
    for kind, own in kinds.items():
        first = own[:EXAMPLES]
        rest = " …" if len(own) > EXAMPLES else ""
        if len(own) == 1:
            yield str(own[0])
        elif len({problem.message for problem in own}) == 1:
            names = ", ".join(problem.where for problem in first)
            yield f"{kind} ({len(own)}): {names}{rest}: {own[0].message}"
        else:
            told = (f"{problem.where}: {problem.message}"[:_WIDEST] for problem in first)
            yield f"{kind} ({len(own)}): {'; '.join(told)}{rest}"
