"""``wsss combine``: several systems' score maps to one, by a rule or by what learns."""

from dataclasses import replace
from pathlib import Path

import tyro

from wsss_jax.cli.bare import Bare
from wsss_jax.datasets.selection import Data
from wsss_jax.errors import UserError
from wsss_jax.run.executors import Workers
from wsss_jax.stages.combine import Fusion, Learned, combine_learned, opened
from wsss_jax.stages.combine import combine as combine_by_rule


def command(
    stores: tyro.conf.Positional[tuple[Path, ...]],
    data: Bare[Data],
    out: Path,
    fusion: Bare[Fusion] = Fusion(),  # noqa: B008
    saliency: Path | None = None,
    workers: Workers = Workers(),  # noqa: B008
    learned: Bare[Learned] = Learned(),  # noqa: B008
) -> None:
    """Fuse the score maps of several systems, by a closed-form rule or by the learned combiner.

    Args:
        stores: score maps of each system, stores or folders of another tool's files.
        data: the images, with their labels.
        out: store of score maps to write.
        fusion: the rule.
        saliency: saliency maps that weigh the result, a store or a folder of grey pictures.
        workers: processes and shards, of a rule.
        learned: the combiner that learns from image labels, in place of a rule.
    """
    if learned.run is not None and fusion != Fusion():
        raise UserError("a rule does nothing with --run, which learns; leave one of them out")
    source = data.open()
    systems = opened(stores, source, out, workers)
    cue = None if saliency is None else opened((saliency,), source, out, workers)[0]
    if learned.run is not None:
        teaching = replace(data, split=learned.learn_split).open()
        print(combine_learned(learned, systems, cue, source, teaching, out).maps.folder)
        return
    fused = combine_by_rule(
        systems, source, out, fusion, ids=source.ids, saliency=cue, workers=workers
    )
    print(fused.folder)
