"""Every explanation method on a few photographs of a split: one sheet (PNG) and one page (HTML).

Command: python benchmarks/explanation_gallery.py RUN --data DATA --out FOLDER [--photographs 10]
Each photograph is one line of the sheet per class that the network finds. RISE draws 300 masks and
SS-CAM one noise per channel. Score-CAM and SS-CAM ask the network once per channel and photograph:
name the others with --methods, or leave those out with --without, to be done in minutes.
"""

import argparse
from pathlib import Path

from explanation_metrics import methods_of

from wsss_jax.data.files import write_atomic
from wsss_jax.datasets.table import open_dataset
from wsss_jax.stages.parts import pictures
from wsss_jax.stages.parts.subject import subject_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--split", default="val")
    parser.add_argument("--photographs", type=int, default=10)
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--methods", nargs="+", default=None)
    parser.add_argument("--without", nargs="+", default=())
    given = parser.parse_args()
    asked = subject_of(given.run)
    source = open_dataset(given.data, split=given.split)
    methods = {
        name: method
        for name, method in methods_of(asked).items()
        if name not in given.without and (given.methods is None or name in given.methods)
    }
    # Photographs are read from files, so that those of records and archives can be shown too.
    files = []
    for id in source.ids[: given.photographs]:
        files.append(given.out / "photographs" / f"{id}.jpg")
        write_atomic(files[-1], source.encoded(id))
    showing = pictures.Showing(side=given.side, columns=0)
    found = pictures.explained(asked, files, showing, methods)
    title = f"{given.run.name} on {source.name}"
    for path in pictures.write(given.out, found, asked, title=title, columns=showing.columns):
        print(path)


if __name__ == "__main__":
    main()
