"""Execute notebooks: each ``notebooks/NAME.py`` to ``NAME.ipynb`` with its outputs, kept small.

Command: pip install -e '.[notebook]' && python docs/notebooks.py [NAME ...]
Where ``OUT`` names a folder, notebooks put there what they train, and go on from what is there.
"""

import base64
import io
import sys
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from PIL import Image

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
COLOURS = 128
"""Of a picture: a quarter of the bytes."""


def execute(script: Path) -> None:
    """Write the notebook of one script."""
    book = jupytext.read(script)
    NotebookClient(book, timeout=None, resources={"metadata": {"path": "."}}).execute()
    for number, cell in enumerate(book.cells):
        cell.id, cell.metadata = f"{script.stem}-{number}", {}
        if cell.cell_type == "code":
            cell.outputs = small(cell.outputs)
    nbformat.write(book, script.with_suffix(".ipynb"))


def small(outputs: list) -> list:
    """Pictures of few colours, printed text in one piece, no progress."""
    text = "".join(one.text for one in outputs if one.output_type == "stream")
    lines = [line for line in text.splitlines(keepends=True) if " left\n" not in line]
    kept = [one for one in outputs if one.output_type != "stream"]
    for one in kept:
        if "image/png" in one.get("data", {}):
            picture, packed = io.BytesIO(base64.b64decode(one.data["image/png"])), io.BytesIO()
            Image.open(picture).convert("RGB").quantize(COLOURS).save(packed, "png", optimize=True)
            one.data["image/png"] = base64.b64encode(packed.getvalue()).decode()
    printed = [nbformat.v4.new_output("stream", text="".join(lines))] if lines else []
    return printed + kept


if __name__ == "__main__":
    for path in sorted(FOLDER.glob("*.py")):
        if path.stem in sys.argv[1:] or not sys.argv[1:]:
            execute(path)
