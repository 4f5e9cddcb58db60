"""Which images of which data set: what every verb is told in the same words."""

from dataclasses import dataclass
from pathlib import Path

from wsss_jax.datasets import views
from wsss_jax.datasets.table import ALL, Source, open_dataset


@dataclass(frozen=True)
class Data:
    """The data set.

    Attributes:
        data: folder of the data set.
        split: one of its lists (train, val …), or "all".
        layout: one of DATASETS; "auto" tells them apart.
        lists: folder of id lists (*.txt, cls_labels.npz), if they lie elsewhere.
        only: classes to use; all others become background. Not given: all classes.
    """

    data: Path
    split: str = ALL
    layout: str = "auto"
    lists: Path | None = None
    only: tuple[str, ...] = ()

    def open(self) -> Source:
        """The source on disk, of the classes that are asked for. Raises BadFileError."""
        source = open_dataset(self.data, split=self.split, layout=self.layout, lists=self.lists)
        return views.only(source, self.only)
