"""Weight files from the Hugging Face hub: fetched when asked for by name, never otherwise."""

import importlib
import json
from pathlib import Path
from typing import Any

from wsss_jax.errors import BadFileError, MissingFileError, UserError
from wsss_jax.formats import bounded
from wsss_jax.weights.normalisation import Normalisation, checked

PREFIX = "hub:"
"""What begins the name of a file on the hub: ``hub:timm/resnest101e.in1k``."""

FILE = "model.safetensors"
"""The file that is fetched where none is named (``hub:owner/name/other.safetensors``)."""

CONFIGS = ("config.json", "preprocessor_config.json")
"""Files beside the weights that say how images are normalised: timm's, transformers'."""

_MAX_CONFIG = 10_000_000  # bytes


def is_on_hub(source: str) -> bool:
    """Whether a source names a file on the hub and not on disk."""
    return source.startswith(PREFIX)


def fetch(source: str) -> Path:
    """The local copy of a file on the hub, downloaded once into the hub's own cache.

    source: ``hub:owner/name``, or ``hub:owner/name/file``. Needs the extra ``weights``. The
    configuration beside it comes too, where there is one. Raises MissingFileError when the package
    or the network is missing, saying which file to place where.
    """
    owner, _, rest = source.removeprefix(PREFIX).partition("/")
    name, _, file = rest.partition("/")
    file = file or FILE
    if not owner or not name:
        raise UserError(f"{source}: wanted {PREFIX}owner/name, as in {PREFIX}timm/resnet50.a1_in1k")
    repository = f"{owner}/{name}"
    by_hand = (
        f"download {file} of {repository} from the hub's web page where there is a network, place "
        f"it here as {name}{Path(file).suffix} (its config.json as {name}.json), and give that path"
    )
    try:
        hub = importlib.import_module("huggingface_hub")
    except ImportError as problem:
        raise MissingFileError(
            f"{source}: the package huggingface-hub is not installed: pip install "
            f"'wsss-jax[weights]' (from a clone: pip install -e '.[weights]'); or {by_hand}"
        ) from problem
    try:
        path = Path(hub.hf_hub_download(repository, file))
    except (OSError, RuntimeError, ValueError) as problem:
        # The hub's own errors, and those of the network under it, derive from OSError.
        reason = (str(problem).strip() or type(problem).__name__).splitlines()[0]
        raise MissingFileError(f"{source}: no download ({reason}); {by_hand}") from problem
    for config in CONFIGS:
        _try_to_fetch(hub, repository, config)
    return path


def fetched(repository: str) -> Path | None:
    """The local copy of a repository's FILE where an earlier ``fetch`` left one; no network."""
    try:
        hub = importlib.import_module("huggingface_hub")
    except ImportError:
        return None
    found = hub.try_to_load_from_cache(repository, FILE)
    return Path(found) if isinstance(found, str) else None


def configured(path: Path) -> Normalisation | None:
    """The normalisation in a configuration beside a weight file; None without one.

    Looked at are ``<name>.json``, ``config.json`` and ``preprocessor_config.json`` in the folder of
    the file. Raises BadFileError for one that is damaged.
    """
    # A file of another name than the hub's may lie in a folder of anything.
    shared = CONFIGS if path.stem in ("model", "pytorch_model", "open_clip_model") else ()
    for name in (f"{path.stem}.json", *shared):
        config = path.with_name(name)
        if config.is_file() and (found := _normalisation(config)) is not None:
            return found
    return None


def _normalisation(config: Path) -> Normalisation | None:
    try:
        content = json.loads(bounded.read_bytes(config, _MAX_CONFIG))
        inner = content.get("pretrained_cfg", content)
        for mean, std in (("mean", "std"), ("image_mean", "image_std")):
            if mean in inner and std in inner:
                return checked(inner[mean], inner[std])
    except (TypeError, AttributeError, ValueError, RecursionError) as problem:
        raise BadFileError(f"{config}: no configuration of weights ({problem})") from problem
    return None


def _try_to_fetch(hub: Any, repository: str, file: str) -> None:
    try:
        hub.hf_hub_download(repository, file)
    except (OSError, RuntimeError, ValueError):
        return  # many have none; whoever needs the normalisation then asks for it
