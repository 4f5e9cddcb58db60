"""Training of one system into a run folder: settings.json, metrics.jsonl and checkpoint/."""

import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from wsss_jax import __version__, config
from wsss_jax.data.augment import Augmentation
from wsss_jax.data.batches import training_batches
from wsss_jax.data.classes import ClassList
from wsss_jax.data.datasets import Source
from wsss_jax.data.files import BadFileError, write_atomic
from wsss_jax.stages.progress import meter
from wsss_jax.systems import classifier
from wsss_jax.systems.classifier import Classifier
from wsss_jax.train import loop
from wsss_jax.train.checkpoint import Checkpoints


@dataclass(frozen=True)
class Training:
    """One system and how long it learns.

    Attributes:
        model: the network and its optimizer.
        augmentation: what happens to training images.
        epochs: passes over the labelled images.
        batch_size: images per step, over all hosts.
        seed: of the start, the order and the augmentation.
        save_every: steps between checkpoints.
        cache_megabytes: memory in which decoded photographs are kept.
    """

    model: Classifier = field(default_factory=Classifier)
    augmentation: Augmentation = field(default_factory=Augmentation)
    epochs: int = 8
    batch_size: int = 16
    seed: int = 0
    save_every: int = 25
    cache_megabytes: int = 1024


def fit(source: Source, settings: Training, folder: Path) -> Path:
    """Train on the source's image labels, or go on with a run that was stopped; returns ``folder``.

    Raises ValueError when the folder holds a run with other settings, naming them.
    """
    record = run_record(settings, source)
    _claim(folder, record)
    if (folder / "finished").exists():
        return folder
    batches = training_batches(
        source,
        settings.augmentation,
        seed=settings.seed,
        batch_size=settings.batch_size,
        shard=(jax.process_index(), jax.process_count()),
        cache_bytes=settings.cache_megabytes << 20,
    )
    steps = settings.epochs * batches.steps_per_epoch
    system = classifier.make(settings.model, classes=len(source.classes), steps=steps)
    with meter(f"train {folder.name}", steps, "steps") as bar:

        def progress(done: int, total: int, metrics: Mapping[str, float]) -> None:
            note = f"loss {metrics['loss']:.4f}  {metrics['images_per_second']:.1f} images/s"
            skipped = int(metrics["skipped"])
            bar.advance(done - bar.done, note + (f"  {skipped} bad steps" if skipped else ""))

        def resumed(done: int) -> None:
            bar.start_at(done)

        loop.fit(
            system,
            batches,
            loop.Loop(steps, save_every=settings.save_every),
            folder=folder,
            key=jax.random.key(settings.seed),
            progress=progress,
            resumed=resumed,
        )
    for id, reason in sorted(batches.skipped.items()):
        print(f"train {folder.name}: left out {id}: {reason}")
    write_atomic(folder / "finished", f"{steps} steps\n".encode())
    return folder


def run_record(settings: Training, source: Source) -> dict[str, Any]:
    """What a run folder says of how it was made; the weight file by name, wherever it lies."""
    chosen = config.as_json(settings)
    if settings.model.weights is not None:
        chosen["model"]["weights"] = settings.model.weights.name
    return {
        "settings": chosen,
        "data": {"name": source.name, "images": len(source.ids)},
        "classes": list(source.classes.names),
    }


def trained(folder: Path) -> tuple[Training, ClassList, Any]:
    """Settings, classes and final state of a finished run. BadFileError where there is none."""
    path = folder / "settings.json"
    if not path.is_file() or not (folder / "finished").exists():
        raise BadFileError(f"{folder}: no finished training run; run `wsss train` into it first")
    record = json.loads(path.read_text())
    settings = config.from_json(Training, record["settings"])
    classes = ClassList(tuple(record["classes"]))
    template = classifier.template(settings.model, len(classes))
    found = Checkpoints(folder / "checkpoint").restore(template)
    if found is None:
        raise BadFileError(f"{folder}: finished, but without a checkpoint; delete it, train again")
    return settings, classes, found[1]


def versions() -> dict[str, str]:
    """Versions of what decides about results, for provenance."""
    names = ("jax", "flax", "optax", "orbax-checkpoint", "numpy", "pillow", "grain")
    found = {name: metadata.version(name) for name in names}
    found["wsss_jax"] = __version__
    return {"python": platform.python_version(), **found, "device": jax.devices()[0].device_kind}


def _claim(folder: Path, record: dict[str, Any]) -> None:
    path = folder / "settings.json"
    if path.exists():
        old = {k: v for k, v in json.loads(path.read_text()).items() if k != "versions"}
        changed = config.differences(old, record)
        if changed:
            raise ValueError(
                f"{folder} holds a run with other settings; choose another folder or delete it:\n  "
                + "\n  ".join(changed)
            )
        return
    content = {**record, "versions": versions()}
    write_atomic(path, json.dumps(content, indent=1).encode())
