"""``wsss demo``: the whole path on a data set that is drawn."""

from pathlib import Path

from wsss_jax.cli.run import make_whole
from wsss_jax.recipes import demo


def command(
    out: Path = Path("runs/demo"), images: int = demo.IMAGES, epochs: int = demo.EPOCHS
) -> None:
    """Run the whole path on drawn scenes, in minutes: a report page and a table at the end.

    Args:
        out: folder of everything that is made.
        images: scenes to draw; a third of them is for validation.
        epochs: passes over the training scenes.
    """
    data = demo.prepare(out / "data", images)
    make_whole(demo.recipe(data, epochs=epochs), out)
