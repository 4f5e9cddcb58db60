"""Sixty photographs as people have them, out of MSRC, to try ``wsss run --data`` on.

    python benchmarks/ugly_photographs.py DATA/msrc21 --out ugly

The table is one that a spreadsheet saves: a mark at its start, semicolons, Windows line ends and
decimal names. Names have spaces, umlauts, brackets and suffixes in capitals; every seventh
photograph lies on its side and tells so in its EXIF; one has 12 megapixels; five show none of the
five classes. True masks go to ``ugly_masks``, so that nothing of a run can read them; move them to
``ugly/masks`` to judge what a run made.
"""

import json
import shutil
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path

import numpy as np
import tyro
from PIL import Image

CLASSES = ("cow", "sheep", "bicycle", "car", "dog")
EACH, NONE = 11, 5
NAMES = ("Übung {:03}.JPG", "Foto größe ({:03}).jpg", "IMG {:03}.jpeg")
LARGE, ROTATED = 5, 7
LARGE_SIZE = (4000, 3000)
"""(width, height)."""
_STORED = {
    6: Image.Transpose.ROTATE_90,
    8: Image.Transpose.ROTATE_270,
    3: Image.Transpose.ROTATE_180,
}
"""How a picture must be turned so that this EXIF orientation turns it back."""
VOID = 0


@dataclass(frozen=True)
class Options:
    """From where, and where to.

    Attributes:
        data: MSRC, with labels.json, images/ and masks/.
        out: a new folder; masks go to a folder of the same name and ``_masks``.
    """

    data: tyro.conf.Positional[Path]
    out: Path = Path("ugly")


def main(options: Options) -> None:
    table = json.loads((options.data / "labels.json").read_text())
    names, labels = table["classes"], table["image_labels"]
    masks = options.out.with_name(f"{options.out.name}_masks")
    for folder in (options.out, masks):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    rows = ["Datei;Klassen"]
    for number, id in enumerate(chosen(names, labels)):
        file = NAMES[number % len(NAMES)].format(number)
        picture = Image.open(options.data / "images" / f"{id}.jpg")
        mask = Image.fromarray(
            _own_values(np.asarray(Image.open(options.data / "masks" / f"{id}.png")), names)
        )
        if number == LARGE:
            picture = picture.resize(LARGE_SIZE, Image.Resampling.BICUBIC)
            mask = mask.resize(LARGE_SIZE, Image.Resampling.NEAREST)
        _save(picture, options.out / file, number)
        mask.save(masks / f"{Path(file).stem}.png")
        shown = [name for name in CLASSES if names.index(name) in labels[id]]
        rows.append(f"{file};{','.join(shown)}")
    text = "\r\n".join([*rows, ""])
    (options.out / "labels.csv").write_bytes(text.encode("utf-8-sig"))
    print(options.out, masks)


def chosen(names: list[str], labels: dict[str, list[int]]) -> list[str]:
    """Ids: EACH of every class by turns, then NONE without any; a photograph counts once."""
    found: list[list[str]] = []
    for name in CLASSES:
        taken = set(chain(*found))
        own = [id for id, shown in labels.items() if names.index(name) in shown and id not in taken]
        found.append(own[:EACH])
    numbers = {names.index(name) for name in CLASSES}
    without = [id for id, shown in labels.items() if not numbers & set(shown)]
    by_turns = [id for row in zip_longest(*found) for id in row if id is not None]
    return by_turns + without[:: len(without) // NONE][:NONE]


def _own_values(mask: np.ndarray, names: list[str]) -> np.ndarray:
    """Values of CLASSES from 1 on; other things are background, what nobody marked 255."""
    values = np.zeros(256, np.uint8)
    values[VOID] = 255
    for number, name in enumerate(CLASSES, start=1):
        values[names.index(name)] = number
    return values[mask]


def _save(picture: Image.Image, path: Path, number: int) -> None:
    if number % ROTATED:
        picture.save(path, "JPEG", quality=92)
        return
    orientation = (6, 8, 3)[number // ROTATED % 3]
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture.transpose(_STORED[orientation]).save(path, "JPEG", quality=92, exif=exif)


if __name__ == "__main__":
    main(tyro.cli(Options))
