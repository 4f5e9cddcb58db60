"""Networks by name, with weights, and a classifier that learns from image labels."""

from pathlib import Path
from typing import Any

import jax

from wsss_jax.datasets.selection import Data
from wsss_jax.errors import UserError
from wsss_jax.formats.bounded import as_path
from wsss_jax.models import build
from wsss_jax.run.training import Training
from wsss_jax.stages.train import fit, trained
from wsss_jax.systems import SYSTEMS, Classifier, name_of


def network(
    name: str,
    weights: str | Path | None = None,
    *,
    classes: int | None = None,
    output_stride: int = 16,
    seed: int = 0,
) -> Any:
    """A backbone, or with ``classes`` a classifier on it: a ``flax.nnx`` module.

    name: one of BACKBONES. weights: file of pretrained weights of the backbone, of any layout
    (.pth, .safetensors, .npz, .params); nothing in it is run. None starts from random ones.
    classes: of a classifier (images (b,H,W,3) in [0, 1] to logits (b,c)), which every method of
    ``explain`` takes; None gives the backbone, which takes normalised images and returns its maps,
    finest first. output_stride: pixels per cell of the last map. seed: of random initial weights.

    Raises UserError for an unknown name, and for a file that does not fit, naming every misfit.

    >>> import jax.numpy as jnp
    >>> import wsss_jax as wj
    >>> net = wj.network("tiny", classes=3, output_stride=8)
    >>> net(jnp.zeros((1, 16, 16, 3))).shape
    (1, 3)
    """
    path = None if weights is None else as_path(weights, "weights")
    made = build.classifier(
        name,
        1 if classes is None else classes,
        key=jax.random.key(seed),
        output_stride=output_stride,
        pretrained=path,
    )
    return made.backbone if classes is None else made


def train_classifier(
    data: str | Path,
    out: str | Path,
    *,
    split: str = "train",
    system: Any = None,
    backbone: str = "auto",
    weights: str | Path | None = None,
    epochs: int = 8,
    batch_size: int = 16,
    seed: int = 0,
) -> Path:
    """Train a system on image labels into a run folder, or go on with it; returns the folder.

    data: folder of the data set. out: run folder, which ``wsss explain`` turns into score maps.
    weights: as for ``network``. backbone: one of BACKBONES; "auto" takes the one that the weights
    are for, mobilenet_v2 without weights. system: settings of a class of ``wsss_jax.systems`` (a
    row of SYSTEMS), for a system other than the plain classifier; the backbone is then given in
    them. The same as ``wsss train``, which has more settings.

    Raises UserError for unknown names, a class without images, and a folder of another run.

    >>> import wsss_jax as wj
    >>> wj.train_classifier(scenes, "runs/x", batch_size=1000)
    Traceback (most recent call last):
    ...
    wsss_jax.errors.UserError: ... not enough for one batch of 1000; take a smaller batch size
    """
    path = None if weights is None else as_path(weights, "weights")
    if system is not None and (weights is not None or backbone != "auto"):
        raise UserError("weights and backbone of a system are given in its settings")
    model = Classifier(backbone=backbone, weights=path) if system is None else system
    chosen = Training(model, epochs=epochs, batch_size=batch_size, seed=seed)
    return fit(Data(as_path(data, "data"), split).open(), chosen, as_path(out, "out"))


def open_network(run: str | Path) -> Any:
    """The trained classifier of a run folder: a ``flax.nnx`` module for ``explain``.

    run: folder of ``train_classifier`` or ``wsss train``. It takes images (b,H,W,3) in [0, 1] to
    logits (b,c), in the order of the data set's classes.

    Raises BadFileError where there is no finished run.

    >>> import wsss_jax as wj
    >>> wj.open_network("nowhere")
    Traceback (most recent call last):
    ...
    wsss_jax.errors.BadFileError: nowhere: ...
    """
    training, classes, state = trained(as_path(run, "run"))
    explained = SYSTEMS[name_of(training.model)].explained(training.model)
    return explained.structure(len(classes)).bind(*explained.weights(state))
