"""The verbs of ``wsss``: one line each. Nothing of a verb is imported before it is chosen."""

import difflib
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from wsss_jax.cli.ending import Usage


@dataclass(frozen=True)
class Verb:
    """Where a verb is found, and what its help shows.

    summary: one line for the first page. target: "module:function"; the function's parameters are
    the flags, its docstring explains them. everyday: flags that ``--help`` shows, separated by
    spaces and without their dashes; "a.*" shows all that begin with "a."; "*" shows all.
    ``--help-all`` shows the others too, required flags are always shown. trains: asks for large
    pages of memory. several: several hosts may train together. parses: the function takes the
    arguments as they were typed, of which the first may be a file. parts: verbs below this one,
    which itself has no function.
    """

    summary: str
    target: str
    everyday: str = "*"
    trains: bool = False
    several: bool = False
    parses: bool = False
    parts: "Mapping[str, Verb]" = field(default_factory=dict)

    def load(self) -> Callable[..., Any]:
        """Import the verb's function."""
        module, name = self.target.split(":")
        return getattr(importlib.import_module(module), name)


_DATA = "data split layout only"

VERBS: MappingProxyType[str, Verb] = MappingProxyType(
    {
        "demo": Verb(
            "run the whole path on drawn scenes, in minutes",
            "wsss_jax.cli.demo:command",
            trains=True,
        ),
        "check": Verb("list every problem of a data set", "wsss_jax.cli.check:command"),
        "train": Verb(
            "train a classifier on image labels",
            "wsss_jax.cli.train:command",
            f"{_DATA} out epochs batch-size seed model.backbone model.weights model.output-stride "
            "model.optim.name model.optim.learning-rate augmentation.crop augmentation.long-side "
            "compute imageless",
            trains=True,
            several=True,
        ),
        "boxes": Verb(
            "write the boxes that a trained box head finds", "wsss_jax.cli.boxes:command"
        ),
        "explain": Verb(
            "class maps of a trained run, as score maps or as pictures",
            "wsss_jax.stages.parts.pictures:command",
            "data split layout run out image method labels layer channels scales flip batch-size",
        ),
        "import": Verb(
            "read score maps, masks or saliency of other tools", "wsss_jax.cli.import_maps:command"
        ),
        "refine": Verb(
            "refine score maps by a random walk or a dense CRF",
            "wsss_jax.cli.refine:command",
            f"{_DATA} out method walk.affinity walk.beta walk.steps crf.preset crf.background "
            "crf.stride workers.count",
        ),
        "affinity": Verb(
            "learn affinity from score maps, and walk along it",
            "wsss_jax.recipes.affinity:command",
            "data split train-split layout only out with-crf training.epochs "
            "training.model.backbone training.model.weights walk.steps crf.preset",
            trains=True,
            several=True,
        ),
        "edges": Verb(
            "edges of a trained network, for refine --walk.edges", "wsss_jax.stages.edges:command"
        ),
        "features": Verb(
            "features of a pretrained network, for combine", "wsss_jax.stages.features:command"
        ),
        "combine": Verb(
            "fuse the score maps of several systems",
            "wsss_jax.cli.combine:command",
            f"{_DATA} out rule saliency run learn-split features learn combining.cells "
            "combining.labelled combining.seed",
            trains=True,
        ),
        "masks": Verb("turn score maps into pseudo-masks", "wsss_jax.stages.masks:command"),
        "saliency": Verb(
            "learn saliency and edges from photographs",
            "wsss_jax.recipes.saliency:command",
            "data split train-split layout out hints with-network training.epochs "
            "training.model.backbone training.model.weights network.epochs network.model.weights",
            trains=True,
            several=True,
        ),
        "segment": Verb(
            "train a segmentation network or head on pseudo-masks",
            "wsss_jax.recipes.segment:command",
            "data split train-split layout out truth with-crf training.epochs "
            "training.batch-size training.model.backbone training.model.weights "
            "prediction.scales",
            trains=True,
            several=True,
        ),
        "evaluate": Verb(
            "judge score maps or masks against true masks",
            "wsss_jax.cli.evaluate:command",
            f"{_DATA} out classes background threshold tuned-reference workers.count",
        ),
        "compare": Verb(
            "show runs side by side: settings, curves, results", "wsss_jax.stages.compare:command"
        ),
        "report": Verb("write one HTML page about score maps", "wsss_jax.cli.report:command"),
        "weights": Verb(
            "pretrained weights: list, get, convert, show",
            "",
            parts=MappingProxyType(
                {
                    "list": Verb("list pretrained weights", "wsss_jax.stages.weights:list_"),
                    "get": Verb("copy weights into a folder", "wsss_jax.stages.weights:get"),
                    "convert": Verb(
                        "write weights of any layout as npz", "wsss_jax.stages.weights:convert"
                    ),
                    "show": Verb("show what a weight file is", "wsss_jax.stages.weights:show"),
                }
            ),
        ),
        "export": Verb(
            "write masks, score maps or a network for other tools",
            "wsss_jax.stages.export:command",
        ),
        "store": Verb(
            "pack a large store into few files, or unpack it",
            "wsss_jax.stages.store:command",
        ),
        "suggest": Verb("name the masks to correct first", "wsss_jax.stages.suggest:command"),
        "run": Verb(
            "from photographs and labels to masks; or run an experiment file",
            "wsss_jax.cli.run:command",
            trains=True,
            several=True,
            parses=True,
        ),
        "predict": Verb(
            "masks of photographs without labels, by a finished run",
            "wsss_jax.stages.predict:command",
        ),
    }
)
"""What ``wsss`` can do, in the order of the path."""


def chosen(name: str, verbs: Mapping[str, Verb] | None = None, command: str = "wsss") -> Verb:
    """The verb of this name. Raises Usage that names the nearest one.

    verbs: VERBS, or the parts of one. command: what is typed before the name.
    """
    verbs = VERBS if verbs is None else verbs
    if name in verbs:
        return verbs[name]
    if not name:
        raise Usage(f"{command}: name a verb: {', '.join(verbs)} ({command} --help explains them)")
    near = difflib.get_close_matches(name, verbs, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(verbs)}"
    what = "flag" if name.startswith("-") else "verb"
    raise Usage(f"{command}: unknown {what} {name!r}; {hint} ({command} --help explains them)")


def commands() -> dict[str, Verb]:
    """Every verb with a function, by what is typed for it."""
    found = {}
    for name, verb in VERBS.items():
        below = {f"{name} {part}": one for part, one in verb.parts.items()}
        found.update(below or {name: verb})
    return found


def first_page() -> str:
    """What ``wsss --help`` prints."""
    return "\n".join(
        [
            "usage: wsss VERB ...",
            "",
            "From image labels to pixel masks: train, explain, refine, fuse, evaluate.",
            "",
            *_listed(VERBS),
            "",
            "wsss VERB --help shows its everyday settings, wsss VERB --help-all all of them.",
            "Exit codes: 0 done, 1 error, 2 mistyped, 3 done but images or maps left out (1 with",
            "--strict), 128 + signal stopped (the same command resumes). WSSS_DEBUG=1 shows where",
            "an error comes from.",
        ]
    )


def page_of_parts(name: str) -> str:
    """What ``wsss VERB --help`` prints of a verb that has verbs below it."""
    return "\n".join([f"usage: wsss {name} VERB ...", "", *_listed(VERBS[name].parts)])


def _listed(verbs: Mapping[str, Verb]) -> list[str]:
    width = max(map(len, verbs)) + 2
    return [f"  {name:{width}}{verb.summary}" for name, verb in verbs.items()]
