"""``wsss train``: one system on image labels."""

from pathlib import Path

import tyro

from wsss_jax.cli.bare import Bare
from wsss_jax.datasets.selection import Data
from wsss_jax.run.training import Training
from wsss_jax.stages.train import fit
from wsss_jax.systems import Classifier, Model


def command(
    data: Bare[Data],
    out: Path,
    # Flags change the settings of the system that is there; another system is a Python file.
    settings: tyro.conf.AvoidSubcommands[Bare[Training[Model]]] = Training(Classifier()),  # noqa: B008
    imageless: tuple[str, ...] = (),
) -> None:
    """Train a plain classifier on image labels; other systems are experiments of `wsss run`.

    Args:
        data: the data set.
        out: run folder; the same command resumes a stopped one.
        settings: the network and how it learns; other systems are chosen in an experiment file.
        imageless: classes that no image may show. Training stops if another class has no image.
    """
    print(fit(data.open(), settings, out, imageless=imageless))
