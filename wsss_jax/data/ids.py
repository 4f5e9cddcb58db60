"""Names of photographs: what people call them, how records of them are called on disk, and back.

An id is the name of a photograph as its user wrote it, without suffix ("IMG 001", "Katze_größe");
where two folders hold the same name, the folders come with it ("front/001"). What is shown and
written for people carries the id. ``disk_name`` makes of any id a name that every common file
system takes, and ``id_of_disk_name`` makes the id of it again:

* a character that some file system or shell cannot have (``/ \\ : * ? " < > | %`` and control
  characters), and a leading dot, dash, tilde or space, become ``%`` and two hexadecimal digits for
  each byte of their UTF-8; so does the first letter of a name that Windows reserves (``con``), and
  every letter beyond ASCII of a name that is not in Unicode's form NFC;
* everything else stays as it is, spaces and letters of all alphabets included;
* a name above 180 bytes is cut into folders, all but the last of which end with a bare ``%``.

Capitals stay too. Two ids that differ in nothing else share a record on a disk that cannot tell
them apart; ``wsss check`` names them.
"""

import os
import re
import unicodedata
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TypeVar
from urllib.parse import unquote

from wsss_jax.errors import BadFileError, UserError

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)

PHOTOGRAPHS = (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".bmp", ".dib", ".webp", ".tif",
               ".tiff", ".gif", ".ppm", ".pgm", ".pnm", ".jp2", ".tga", ".avif")  # fmt: skip
"""Suffixes of files that are taken for photographs, in small letters."""

UNREAD = (".heic", ".heif", ".jxl", ".raw", ".cr2", ".cr3", ".nef", ".arw", ".dng", ".orf", ".rw2",
          ".psd", ".svg", ".pdf", ".eps", ".xcf")  # fmt: skip
"""Suffixes of pictures that are not read; files of such names are reported, never passed over."""

LONGEST = 180
"""Bytes of one part of a name on disk; file systems allow 255, suffix and temporary name included.
"""

Files = Mapping[str, tuple[Path, ...]]
"""Files by id; one each, unless several share the name."""

_UNSAFE = re.compile(
    '[/\\\\:*?"<>|%\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]'
)
_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_DIGITS = 20
_LINE = 1000
_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\.|$)", re.IGNORECASE)


def check_id(id: str) -> str:
    """The id itself, when it names a file; ValueError for "", control characters and "../x"."""
    if _UNSEEN.search(id) or {"", ".", ".."} & set(id.split("/")):
        raise UserError(
            f"id {id!r} is not usable as a file name: it is empty, leaves its folder, or holds "
            "control characters"
        )
    return id


def id_of_name(name: str) -> str:
    """The id of a name without suffix: control characters and undecodable bytes become %XX."""
    return _UNSEEN.sub(_escaped, unicodedata.normalize("NFC", name))


def disk_name(id: str) -> str:
    """How a record of this id is called on disk, without suffix; see the module. May have "/"."""
    narrow = unicodedata.normalize("NFC", id) != id
    parts, used = [""], 0
    for place, letter in enumerate(id):
        leading = not parts[-1] and letter in ".-~ "
        reserved = place == 0 and _RESERVED.match(id)
        if leading or reserved or _UNSAFE.match(letter) or (narrow and ord(letter) > 127):
            letter = _escaped(letter)
        size = len(letter.encode())
        if used + size > LONGEST:
            parts[-1] += "%"
            parts.append("")
            used = 0
        parts[-1] += letter
        used += size
    return "/".join(parts)


def id_of_disk_name(name: str) -> str:
    """The id that ``disk_name`` made this of."""
    return unquote(name.replace("%/", ""), errors="surrogateescape")


def ids_in(folder: Path, suffix: str) -> tuple[str, ...]:
    """Ids of the records in a folder, sorted; temporary files and strangers' folders are no ids."""
    found = []
    for path in folder.rglob(f"*{suffix}"):
        *above, name = path.relative_to(folder).parts
        if not name.startswith(".") and all(part.endswith("%") for part in above):
            found.append(id_of_disk_name("/".join((*above, name.removesuffix(suffix)))))
    return tuple(sorted(found))


def files_below(folder: Path) -> Iterator[Path]:
    """All files of a folder and its folders, sorted by path; what systems leave there is not."""
    for place, inner, names in os.walk(folder):
        inner[:] = sorted(name for name in inner if name != "__MACOSX" and name[:1] != ".")
        for name in sorted(names):
            if not name.startswith("._"):
                yield Path(place, name)


def by_id(folder: Path, paths: Iterable[Path]) -> dict[str, tuple[Path, ...]]:
    """Files by id: the name without suffix, with its folders where another folder has it too."""
    places: dict[PurePosixPath, tuple[Path, ...]] = {}
    for path in paths:
        place = PurePosixPath(path.relative_to(folder).with_suffix("").as_posix())
        places[place] = (*places.get(place, ()), path)
    alone = _unique((id_of_name(place.name), place) for place in places)
    found: dict[str, tuple[Path, ...]] = {}
    for place, files in places.items():
        short = id_of_name(place.name)
        id = short if alone[short] is not None else id_of_name(place.as_posix())
        found[id] = (*found.get(id, ()), *files)
    return found


def pictures(folder: Path, suffixes: tuple[str, ...] = PHOTOGRAPHS) -> dict[str, tuple[Path, ...]]:
    """Pictures in a folder and below it, by id. Raises BadFileError without a folder."""
    if not folder.is_dir():
        raise BadFileError(f"{folder}: no such folder")
    return by_id(folder, (p for p in files_below(folder) if p.suffix.lower() in suffixes))


@dataclass(frozen=True)
class Index:
    """Which photograph a label file or a list means.

    files: photographs by id.
    """

    files: Files

    def find(self, text: str) -> str | None:
        """The id that a name means: as it stands, without suffix or folders, in other capitals.

        None where no photograph, or more than one, can be meant.
        """
        if text in self.files:
            return text
        if "://" in text:
            text = unquote(text.partition("?")[0].partition("#")[0])
        plain = unicodedata.normalize("NFC", text.strip().strip("\"'").replace("\\", "/"))
        stem, suffix = os.path.splitext(plain)
        for name in (plain, stem if suffix.lower() in PHOTOGRAPHS else plain):
            parts = [part for part in name.split("/") if part not in ("", ".")]
            for start in range(len(parts)):
                tail = "/".join(parts[start:])
                if tail in self.files:
                    return tail
                if tail in self._tails:
                    return self._tails[tail]
                if self._folded.get(tail.casefold()) is not None:
                    return self._folded[tail.casefold()]
        return None

    def line(self, text: str) -> str | None:
        """The id that a line of a list means: its whole, or what stands before further columns.

        Of a longer line than names are, only the beginning is looked at.
        """
        found = self.find(text)
        words = re.split(r"([\s,;]+)", text[:_LINE])
        for count in range(len(words) - 2, 0, -2):
            found = found or self.find("".join(words[:count]))
        return found

    @cached_property
    def _tails(self) -> dict[str, str | None]:
        """Ids by the ends of their paths, without suffix."""
        return _unique(
            ("/".join(parts[start:]), id)
            for id, paths in self.files.items()
            for parts in [id_of_name(paths[0].with_suffix("").as_posix()).split("/")[-4:]]
            for start in range(len(parts))
        )

    @cached_property
    def _folded(self) -> dict[str, str | None]:
        return _unique((tail.casefold(), id) for tail, id in self._tails.items() if id is not None)


def by_number(files: Files) -> Callable[[str], str | None]:
    """Finds ids that are numbers by their value: programs of tables write 0012 as 12."""
    numbers = _unique((int(id), id) for id in files if id.isdecimal() and len(id) < _DIGITS)

    def find(text: str) -> str | None:
        text = text.strip()
        return numbers.get(int(text)) if text.isdecimal() and len(text) < _DIGITS else None

    return find


def _unique(pairs: Iterable[tuple[K, T]]) -> dict[K, T | None]:
    """The value of each key, None where there are several."""
    found: dict[K, T | None] = {}
    for key, value in pairs:
        found[key] = value if found.get(key, value) == value else None
    return found


def _escaped(letter: str | re.Match[str]) -> str:
    text = letter if isinstance(letter, str) else letter.group()
    return "".join(f"%{byte:02X}" for byte in text.encode("utf-8", "surrogateescape"))
