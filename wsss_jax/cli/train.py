"""``wsss train``: one system on image labels."""

from pathlib import Path

from wsss_jax.cli.bare import Bare
from wsss_jax.datasets.selection import Data
from wsss_jax.stages.train import Training, fit


def command(
    data: Bare[Data],
    out: Path,
    settings: Bare[Training] = Training(),  # noqa: B008
) -> None:
    """Train one system on image labels into a run folder.

    Args:
        data: the data set.
        out: run folder; the same command goes on where it was stopped.
        settings: the network and how it learns.
    """
    print(fit(data.open(), settings, out))
