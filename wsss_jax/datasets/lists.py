"""Lists of photographs: which files are lists, and which photographs their lines mean.

A line is a name, with or without suffix and folders, and may have further columns: the mask, as in
the lists of PSA and DeepLab, or -1, 0, 1, as in ImageSets/Main of PASCAL VOC.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from wsss_jax.data.ids import Index, check_id
from wsss_jax.data.texts import read_text
from wsss_jax.errors import BadFileError, MissingFileError, UserError

NO_LIST = re.compile(
    r"(readme|licen[sc]e|copying|notice|authors?|source|changelog|requirements|class(es|_?names)"
    r"|labels?|labelmap|colou?rs)\b.*",
    re.IGNORECASE,
)
"""Names of text files that lie in data sets and are no lists."""

_HEADER = re.compile(r"(file|image|img|photo|path|id|name)[a-z _-]*([,;\t].*)?", re.IGNORECASE)

SUFFIXES = (".txt", ".csv", ".lst", ".list")
"""Of files that are lists where they lie in a folder of lists."""


def given_lists(folder: Path) -> dict[str, Path]:
    """As ``list_files``, of a folder that the user named. MissingFileError where there is none."""
    if not folder.is_dir():
        raise MissingFileError(f"{folder}: no such folder of lists")
    return list_files(folder)


def list_files(folder: Path, suffixes: Collection[str] = SUFFIXES) -> dict[str, Path]:
    """Lists by split: names without suffix in small letters. BadFileError for two of one name."""
    if not folder.is_dir():
        return {}
    found: dict[str, Path] = {}
    for path in sorted(path for path in folder.iterdir() if path.suffix.lower() in suffixes):
        if path.name[:1] in (".", "~"):
            continue
        split = path.stem.lower()
        if split in found:
            raise BadFileError(f"{folder}: both {found[split].name} and {path.name}; keep one")
        if not NO_LIST.fullmatch(path.stem):
            found[split] = path
    return found


def read_list(path: Path) -> tuple[str, ...]:
    """The lines of a list, in its order and as they stand, repeated ones included.

    Byte-order marks, Windows line ends and blank lines are ignored. Raises BadFileError where the
    file is missing or no text; ``ids_of`` makes ids of the lines.
    """
    text, _ = read_text(path)
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def ids_of(path: Path, index: Index) -> tuple[str, ...]:
    """The ids of a list that is fit for use: not empty, none twice, none that is no name.

    A name that no photograph has stays as it is, for the stages to report. Raises BadFileError
    that names the first offender, also where not one line is a photograph.
    """
    lines = read_list(path)
    found = named_in(lines, index)
    if lines and index.files and not any(id in index.files for id in found):
        raise BadFileError(
            f"{path}: none of its {len(lines)} lines is a photograph of this data set: "
            f"{lines[0]!r} …, where there is {next(iter(index.files))!r}"
        )
    return checked_ids(found, path)


def named_in(lines: Iterable[str], index: Index) -> tuple[str, ...]:
    """The ids that the lines of a list mean; a line that means none stays as it is.

    Comments (# …) and a header in the first line are left out.
    """
    found = ((n, line, index.line(line)) for n, line in enumerate(lines))
    return tuple(
        id or line
        for n, line, id in found
        if id or not (line.startswith("#") or (n == 0 and _HEADER.fullmatch(line)))
    )


def checked_ids(ids: tuple[str, ...], path: Path) -> tuple[str, ...]:
    """The ids themselves, when there are any, each once and each a name: else BadFileError.

    path: what the error names.
    """
    if not ids:
        raise BadFileError(f"{path}: no ids in it; wanted one id a line")
    for id in ids:
        reason = unusable(id)
        if reason:
            raise BadFileError(f"{path}: {reason}")
    twice = repeated(ids)
    if twice:
        raise BadFileError(
            f"{path}: {len(twice)} photographs stand in it twice, the first is {twice[0]!r}; keep "
            "each once"
        )
    return ids


def unusable(id: str) -> str | None:
    """Why a text is no id of a data set, None where it is one."""
    try:
        check_id(id)
    except UserError as problem:
        return str(problem)
    return None


def repeated(ids: Iterable[str]) -> tuple[str, ...]:
    """The ids that stand in a sequence more than once, each named once."""
    seen: set[str] = set()
    return tuple(dict.fromkeys(id for id in ids if id in seen or seen.add(id)))


def split_named(split: str, known: Mapping[str, object]) -> str | None:
    """The split that is meant, whatever its capitals; None where there is none."""
    folded = {name.lower(): name for name in known}
    return split if split in known else folded.get(split.lower())
