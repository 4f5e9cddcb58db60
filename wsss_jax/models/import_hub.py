"""Weight files from the Hugging Face hub: fetched when asked for by name, never otherwise."""

import importlib
from pathlib import Path

from wsss_jax.errors import UserError

PREFIX = "hub:"
"""What begins the name of a file on the hub: ``hub:timm/resnest101e.in1k``."""

FILE = "model.safetensors"
"""The file that is fetched where none is named (``hub:owner/name/other.safetensors``)."""


def is_on_hub(source: str) -> bool:
    """Whether a source names a file on the hub and not on disk."""
    return source.startswith(PREFIX)


def fetch(source: str) -> Path:
    """The local copy of a file on the hub, downloaded once into the hub's own cache.

    source: ``hub:owner/name``, or ``hub:owner/name/file``. Needs the extra ``hub``. Raises
    ValueError when the package or the network is missing, saying which file to place where.
    """
    owner, _, rest = source.removeprefix(PREFIX).partition("/")
    name, _, file = rest.partition("/")
    file = file or FILE
    if not owner or not name:
        raise UserError(f"{source}: wanted {PREFIX}owner/name, as in {PREFIX}timm/resnet50.a1_in1k")
    repository = f"{owner}/{name}"
    by_hand = (
        f"download https://huggingface.co/{repository}/resolve/main/{file} where there is a "
        f"network, place it here as {name}{Path(file).suffix}, and give that path"
    )
    try:
        hub = importlib.import_module("huggingface_hub")
    except ImportError as problem:
        raise UserError(
            f"{source}: the package huggingface-hub is not installed; pip install "
            f"'wsss-jax[hub]', or {by_hand}"
        ) from problem
    try:
        return Path(hub.hf_hub_download(repository, file))
    except (OSError, RuntimeError, ValueError) as problem:
        # The hub's own errors, and those of the network under it, derive from OSError.
        raise UserError(f"{source}: no download ({problem}); {by_hand}") from problem
