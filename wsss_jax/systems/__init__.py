"""Learning problems: models and losses as two pure functions.

``SYSTEMS`` holds every system that learns from image labels. To add one: write its settings and
``make`` (see ``entry.Entry``), and one line here; the family test then covers it.
"""

from collections.abc import Mapping
from types import MappingProxyType

from wsss_jax.errors import UserError
from wsss_jax.systems import boxes, classifier, interpretable, lfi, pnoc, poc, seam
from wsss_jax.systems.boxes import BoxRegression as BoxRegression
from wsss_jax.systems.classifier import Classifier as Classifier
from wsss_jax.systems.entry import Entry as Entry
from wsss_jax.systems.entry import Explained as Explained
from wsss_jax.systems.interpretable import InterpretableGradient as InterpretableGradient
from wsss_jax.systems.lfi import Lfi as Lfi
from wsss_jax.systems.pnoc import PNoc as PNoc
from wsss_jax.systems.poc import OcCse as OcCse
from wsss_jax.systems.poc import POc as POc
from wsss_jax.systems.poc import PuzzleCam as PuzzleCam
from wsss_jax.systems.seam import Seam as Seam

Model = (
    Classifier | PuzzleCam | OcCse | POc | PNoc | Seam | InterpretableGradient | Lfi | BoxRegression
)
"""The settings of any system of the table."""

_JUDGED = (poc.make_judged, poc.template_judged, poc.explained_judged)

SYSTEMS: Mapping[str, Entry] = MappingProxyType(
    {
        "vanilla": Entry(Classifier, classifier.make, classifier.template, classifier.explained),
        "puzzle": Entry(PuzzleCam, poc.make_puzzle, poc.template_puzzle, poc.explained_puzzle),
        "occse": Entry(OcCse, *_JUDGED),
        "poc": Entry(POc, *_JUDGED),
        "pnoc": Entry(PNoc, pnoc.make, pnoc.template, pnoc.explained),
        "seam": Entry(Seam, seam.make, seam.template, seam.explained),
        "interpretable": Entry(
            InterpretableGradient,
            interpretable.make,
            interpretable.template,
            interpretable.explained,
        ),
        "lfi": Entry(Lfi, lfi.make, lfi.template, lfi.explained),
        "boxes": Entry(BoxRegression, boxes.make, boxes.template, boxes.explained, boxes=True),
    }
)
"""Systems by the name that run folders record."""


def name_of(settings: object) -> str:
    """The system that these settings belong to. ValueError where it is none of SYSTEMS."""
    for name, entry in SYSTEMS.items():
        if type(settings) is entry.settings:
            return name
    raise UserError(
        f"{type(settings).__name__} is no system's settings; wanted one of "
        + ", ".join(entry.settings.__name__ for entry in SYSTEMS.values())
    )
