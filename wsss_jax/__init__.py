"""wsss_jax: from image-level labels to pixel masks, in JAX, with a combiner for many systems.

These are the public names. Each is loaded on its first use, so the import costs nothing. All else
is in the packages, which CONTRIBUTING.md lists, and on the command line (``wsss --help``).

* on one image: ``explain``, ``dense_crf``, ``random_walk``, ``fuse``, ``masks_of``,
  ``otsu_threshold``
* on folders: ``evaluate``, ``read_maps``, ``open_dataset``, ``open_store``, ``draw_scenes``,
  ``train_classifier``, ``combine``
* networks: ``network``, ``open_network``
* types: ``ScoreMaps``, ``Store``, ``ClassList``, ``Scorer``, ``UserError``, ``IGNORE``
* tables of names: ``BACKBONES``, ``CRF_PRESETS``, ``DATASETS``, ``EXPLAINERS``,
  ``FUSIONS``, ``READERS``, ``SYSTEMS``

>>> import wsss_jax as wj
>>> sorted(wj.FUSIONS)[:3], "resnet50" in wj.BACKBONES, "grad_cam" in wj.EXPLAINERS
(['agreement_mean', 'dawid_skene', 'log_opinion_pool'], True, True)
>>> sorted(wj.SYSTEMS)
['boxes', 'interpretable', 'lfi', 'occse', 'pnoc', 'poc', 'puzzle', 'seam', 'vanilla']
>>> sorted(wj.DATASETS)
['class_folders', 'coco', 'folder', 'tfds', 'voc']
>>> wj.CRF_PRESETS["psa"].bilateral_sxy, "irn" in wj.READERS, wj.IGNORE
(80.0, True, 255)
"""

import importlib
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from wsss_jax.xla import keep_reductions_right

if TYPE_CHECKING:
    from wsss_jax import explain as explain
    from wsss_jax.api.fusing import combine as combine
    from wsss_jax.api.fusing import fuse as fuse
    from wsss_jax.api.judging import evaluate as evaluate
    from wsss_jax.api.judging import masks_of as masks_of
    from wsss_jax.api.judging import otsu_threshold as otsu_threshold
    from wsss_jax.api.networks import network as network
    from wsss_jax.api.networks import open_network as open_network
    from wsss_jax.api.networks import train_classifier as train_classifier
    from wsss_jax.api.reading import draw_scenes as draw_scenes
    from wsss_jax.api.reading import open_dataset as open_dataset
    from wsss_jax.api.reading import open_store as open_store
    from wsss_jax.api.refining import dense_crf as dense_crf
    from wsss_jax.api.refining import random_walk as random_walk
    from wsss_jax.backbones import BACKBONES
    from wsss_jax.crf.settings import PRESETS as CRF_PRESETS
    from wsss_jax.data.classes import ClassList as ClassList
    from wsss_jax.data.stores import Store as Store
    from wsss_jax.datasets.table import DATASETS as DATASETS
    from wsss_jax.errors import UserError as UserError
    from wsss_jax.explain import EXPLAINERS as EXPLAINERS
    from wsss_jax.ops.fuse import FUSIONS as FUSIONS
    from wsss_jax.priors.external import read_maps as read_maps
    from wsss_jax.priors.prior_readers import READERS as READERS
    from wsss_jax.systems import SYSTEMS as SYSTEMS
    from wsss_jax.types import IGNORE as IGNORE
    from wsss_jax.types import ScoreMaps as ScoreMaps
    from wsss_jax.types import Scorer as Scorer

__version__ = "0.1.0"

__all__ = [
    "BACKBONES",
    "CRF_PRESETS",
    "DATASETS",
    "EXPLAINERS",
    "FUSIONS",
    "IGNORE",
    "READERS",
    "SYSTEMS",
    "ClassList",
    "ScoreMaps",
    "Scorer",
    "Store",
    "UserError",
    "combine",
    "dense_crf",
    "draw_scenes",
    "evaluate",
    "explain",
    "fuse",
    "masks_of",
    "network",
    "open_dataset",
    "open_network",
    "open_store",
    "otsu_threshold",
    "random_walk",
    "read_maps",
    "train_classifier",
]

_MODULES = MappingProxyType(
    {
        "BACKBONES": "wsss_jax.backbones",
        "CRF_PRESETS": "wsss_jax.crf.settings:PRESETS",
        "DATASETS": "wsss_jax.datasets.table",
        "EXPLAINERS": "wsss_jax.explain",
        "FUSIONS": "wsss_jax.ops.fuse",
        "IGNORE": "wsss_jax.types",
        "READERS": "wsss_jax.priors.prior_readers",
        "SYSTEMS": "wsss_jax.systems",
        "ClassList": "wsss_jax.data.classes",
        "ScoreMaps": "wsss_jax.types",
        "Scorer": "wsss_jax.types",
        "Store": "wsss_jax.data.stores",
        "UserError": "wsss_jax.errors",
        "combine": "wsss_jax.api.fusing",
        "dense_crf": "wsss_jax.api.refining",
        "draw_scenes": "wsss_jax.api.reading",
        "evaluate": "wsss_jax.api.judging",
        "fuse": "wsss_jax.api.fusing",
        "masks_of": "wsss_jax.api.judging",
        "network": "wsss_jax.api.networks",
        "open_dataset": "wsss_jax.api.reading",
        "open_network": "wsss_jax.api.networks",
        "open_store": "wsss_jax.api.reading",
        "otsu_threshold": "wsss_jax.api.judging",
        "random_walk": "wsss_jax.api.refining",
        "read_maps": "wsss_jax.priors.external",
        "train_classifier": "wsss_jax.api.networks",
    }
)
"""Module of each name, and after a colon what it is called there."""


def __getattr__(name: str) -> Any:
    if name == "explain":
        return importlib.import_module("wsss_jax.explain")
    if name not in _MODULES:
        raise AttributeError(f"module 'wsss_jax' has no attribute {name!r}")
    module, _, there = _MODULES[name].partition(":")
    found = getattr(importlib.import_module(module), there or name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


keep_reductions_right()
