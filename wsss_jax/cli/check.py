"""``wsss check``: everything that is wrong with a data set. It imports no jax."""

from pathlib import Path

import tyro

from wsss_jax.cli.ending import DONE, FAILED
from wsss_jax.datasets.check import survey
from wsss_jax.run.progress import meter
from wsss_jax.stages.check import lines


def command(
    data: tyro.conf.Positional[Path], layout: str = "auto", lists: Path | None = None
) -> int:
    """List every problem of a data set; the exit code is 1 if there is one.

    Args:
        data: folder of the data set.
        layout: one of DATASETS; "auto" tells them apart.
        lists: folder of id lists, if they lie elsewhere.
    """
    with meter("check", 1) as bar:
        findings = survey(data, layout, lists=lists, progress=bar.reach)
    for line in lines(findings):
        print(line)
    return FAILED if findings.problems else DONE
