"""What one cell of a table of labels means: yes or no, the names of classes, or nothing.

Not here: which column has what (``tables``).
"""

import re
from collections import Counter
from collections.abc import Collection, Mapping
from types import MappingProxyType

from wsss_jax.data.classes import NO_CLASS

YES = frozenset({"1", "1.0", "true", "t", "yes", "y", "x", "✓", "✔", "☑", "ja", "j", "wahr",
                 "oui", "vrai", "si", "sí", "sì", "sim", "verdadero", "vero"})  # fmt: skip
"""Cells, in small letters, that tell that a class is shown."""

NO = frozenset({"0", "0.0", "-1", "-", "false", "f", "no", "n", "✗", "✘", "☐", "nein", "falsch",
                "non", "faux", "não", "falso"})  # fmt: skip
"""Cells, in small letters, that tell that it is not."""

GAPS = frozenset({"", "nan", "null", "n/a", "#n/a"})
"""Empty cells, and what programs write for them."""

_NONE = GAPS | NO_CLASS | {"none", "-", "nothing"}
_SEPARATORS = re.compile("[;,|]")
_PARTS = re.compile(r"\s*[+/&]\s*")


def names_in(cell: str, classes: Collection[str] = ()) -> list[str]:
    """The labels of one cell: ``cat``, ``cat;dog``, ``['cat', 'dog']``, or none.

    classes: names that are known, one of which may have a comma in it.
    """
    text = cell.strip()
    if text in classes:
        return [text]
    if text[:1] + text[-1:] in ("[]", "()", "{}"):
        text = text[1:-1]
    labels = [part.strip().strip("\"'").strip() for part in _SEPARATORS.split(text)]
    return [label for label in labels if label.casefold() not in _NONE]


def spellings(found: Mapping[str, list[str]]) -> tuple[Mapping[str, list[str]], list[str]]:
    """Labels of files in one spelling, and notes of what was decided.

    Of names that differ in capitals alone the most frequent one counts. ``cat+dog`` is two labels
    where one of them is a label of its own, ``cat dog`` where both are.
    """
    counts = Counter(label for labels in found.values() for label in labels)
    spelled: dict[str, str] = {}
    for label in sorted(counts, key=lambda label: (-counts[label], label)):
        spelled.setdefault(label.casefold(), label)
    meant: dict[str, list[str]] = {}
    notes = []
    for label in sorted(counts):
        words = _several(label, spelled)
        meant[label] = [spelled.get(word.casefold(), word) for word in words]
        if meant[label] != [label]:
            notes.append(f"label {label} is read as {' and '.join(meant[label])}")
        elif any(word.casefold() in spelled for word in label.split()[1:] and label.split()):
            notes.append(f"label {label} is read as one class; write ; between several")
    entries = {
        file: list(dict.fromkeys(name for label in labels for name in meant[label]))
        for file, labels in found.items()
    }
    return MappingProxyType(entries), notes


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
