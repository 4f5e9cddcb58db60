"""What one cell of a table of labels means: yes or no, the names of classes, or nothing.

Not here: which column has what (``tables``).
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

from wsss_jax.data.classes import NO_CLASS
from wsss_jax.errors import BadFileError

YES = frozenset({"1", "1.0", "1,0", "true", "t", "yes", "y", "x", "✓", "✔", "☑", "ja", "j", "wahr",
                 "oui", "vrai", "si", "sí", "sì", "sim", "verdadero", "vero"})  # fmt: skip
"""Cells, in small letters, that tell that a class is shown."""

NO = frozenset({"0", "0.0", "0,0", "-1", "-", "false", "f", "no", "n", "✗", "✘", "☐", "nein",
                "falsch", "non", "faux", "não", "falso"})  # fmt: skip
"""Cells, in small letters, that tell that it is not."""

GAPS = frozenset({"", "nan", "null", "n/a", "#n/a"})
"""Empty cells, and what programs write for them."""

NONE = GAPS | NO_CLASS | {"none", "-", "nothing"}
"""Texts that name no class, in small letters."""

SEPARATORS = ";|,"
"""What may part the labels of one cell."""

_PARTS = re.compile(r"\s*[+/&]\s*")
_WHOLE = re.compile(r"\d+\.0+")
_QUOTED = re.compile(r"""\s*(?:"([^"]*)"|'([^']*)')\s*(?:,|$)""")


def plain(cell: str) -> str:
    """A cell without the ="…" of spreadsheets, by which it is to stay text."""
    return re.sub(r'^="([^"]*)"$', r"\1", cell)


def separator_of(cells: Iterable[str]) -> str:
    """What parts the labels in a column: of ``;``, ``|`` and ``,`` the first that occurs.

    So a class may have a comma where others are parted by ``;``.
    """
    there = {mark for cell in cells for mark in SEPARATORS if mark in cell}
    return next((mark for mark in SEPARATORS if mark in there), ",")


def names_in(cell: str, classes: Collection[str] = (), separators: str = SEPARATORS) -> list[str]:
    """The labels of one cell: ``cat``, ``cat;dog``, ``['cat', 'dog']``, or none.

    classes: names that are known, one of which may have a comma in it.
    """
    text = unicodedata.normalize("NFC", cell.strip())
    if text in classes:
        return [text]
    if text[:1] + text[-1:] in ("[]", "()", "{}"):
        text, separators = text[1:-1], SEPARATORS
    if text[:1] in ("'", '"') and _QUOTED.sub("", text) == "":
        labels = [one or other for one, other in _QUOTED.findall(text)]
    else:
        parts = re.split(f"[{re.escape(separators)}]", text)
        labels = [part.strip().strip("\"'").strip() for part in parts]
    return [label for label in labels if label.casefold() not in NONE]


def parted(cells: Collection[str], mark: str) -> list[str]:
    """A note of a cell that was parted though no part ever stands alone: it may be one class."""
    lists = {cell: names_in(cell, (), mark) for cell in cells}
    alone = {labels[0] for labels in lists.values() if len(labels) == 1}
    for cell, labels in sorted(lists.items()):
        if mark == "," and len(labels) > 1 and not alone & set(labels):
            told = " and ".join(labels)
            return [f"{cell} is read as {told}; where it is one class, list it in class_names.txt"]
    return []


def spellings(
    found: Mapping[str, list[str]], known: Collection[str] = ()
) -> tuple[Mapping[str, list[str]], list[str]]:
    """Labels of files in one spelling, and notes of what was decided.

    Of names that differ in capitals alone the most frequent one counts, or the one that is known.
    ``cat+dog`` is two labels where one of them is a label of its own, ``cat dog`` where both are.
    """
    spelled = spelling_of(found, known)
    meant: dict[str, list[str]] = {}
    notes = []
    for label in sorted({label for labels in found.values() for label in labels}):
        words = [label] if label in known else _several(label, spelled)
        meant[label] = [spelled.get(word.casefold(), word) for word in words]
        if meant[label] != [label]:
            told = " ".join(label.split())
            notes.append(f"label {told} is read as {' and '.join(meant[label])}")
        elif label in known:
            continue
        elif any(word.casefold() in spelled for word in label.split()[1:] and label.split()):
            notes.append(f"label {label} is read as one class; write ; between several")
    entries = {
        file: list(dict.fromkeys(name for label in labels for name in meant[label]))
        for file, labels in found.items()
    }
    return MappingProxyType(entries), notes


def yes_and_no(path: Path, names: Collection[str]) -> list[str]:
    """A note where classes are called 0 and 1. BadFileError where they are called yes and no."""
    if not names or not {name.casefold() for name in names} <= YES | NO:
        return []
    told = f"labels are {', '.join(names)}; if that tells whether a class is shown, put the name "
    told += "of the class above the column"
    if not all(name.isdecimal() for name in names):
        raise BadFileError(f"{path}: {told}, else list the classes in class_names.txt")
    return [told]


def whole_numbers(found: Mapping[str, list[str]]) -> tuple[dict[str, list[str]], list[str]]:
    """Labels 3.0 as 3 where all are such, and a note: programs write so where some are empty."""
    labels = {label for own in found.values() for label in own}
    if not labels or not all(_WHOLE.fullmatch(label) for label in labels):
        return dict(found), []
    read = {file: [label.partition(".")[0] for label in own] for file, own in found.items()}
    return read, [f"label {min(labels)} is read as {min(labels).partition('.')[0]}"]


def spelling_of(found: Mapping[str, Iterable[str]], known: Collection[str] = ()) -> dict[str, str]:
    """The spelling of each label by its small letters: the known one, else the most frequent."""
    counts = Counter(label for labels in found.values() for label in labels)
    spelled = {name.casefold(): name for name in known}
    for label in sorted(counts, key=lambda label: (-counts[label], label)):
        spelled.setdefault(label.casefold(), label)
    return spelled


def _several(label: str, known: Collection[str]) -> list[str]:
    """The labels that one text holds: itself, where its parts are no labels of their own."""
    parts = [part for part in _PARTS.split(label) if part]
    if len(parts) > 1 and any(part.casefold() in known for part in parts):
        return parts
    words = label.split()
    return words if len(words) > 1 and all(w.casefold() in known for w in words) else [label]


def in_order(names: Collection[str]) -> list[str]:
    """Names from A to Z, numbers by their value."""
    if all(name.isdecimal() for name in names):
        return sorted(set(names), key=int)
    return sorted(set(names), key=str.casefold)
