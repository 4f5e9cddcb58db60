"""Tensors of PyTorch files (``.pth``, ``.pt``, ``.bin``) without PyTorch, and without unpickling.

Such a file is a pickle that describes a nest of dictionaries, plus the raw values of the tensors:
a zip archive since PyTorch 1.6, before that one stream. The pickle is stepped through by hand
(``formats.pickles``), so a file can hold numbers and nothing that runs. Not here: what the tensors
mean.

Layout: torch/serialization.py of PyTorch 1.4 (stream) and 2.x (archive).
"""

import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped

from wsss_jax.errors import BadFileError, UserError
from wsss_jax.formats.bounded import DAMAGE, open_file, reason
from wsss_jax.formats.pickled_arrays import kind_of
from wsss_jax.formats.torch_tensors import PLAIN, Tensor, filled, read_archive, read_stream

_NETWORKS = (
    "state_dict", "model_state_dict", "model_state", "model", "teacher", "student", "network",
    "net", "module", "backbone", "encoder", "state_dict_ema", "model_ema", "ema", "params",
)  # fmt: skip
"""What networks are called in checkpoints; DINO's teacher is what its authors judge."""

_NO_NETWORKS = frozenset({"optimizer", "optimizer_state_dict", "optimizers", "optim", "scheduler",
                          "lr_scheduler", "lr_schedulers", "scaler", "amp"})  # fmt: skip

_RUNS = re.compile(r"names (os|posix|nt|subprocess|builtins|__builtin__|sys|shutil|socket)\.")
"""What no checkpoint needs: a file that names these wants to run something."""

_OBJECTS = re.compile(r"(names|uses|holds|no single|a storage of type|tensors of)")
"""How the refusal of values begins that PyTorch can save plainly; the file is not damaged."""


def read(path: Path) -> dict[str, Shaped[np.ndarray, "..."]]:
    """Every tensor of the file by its name; bfloat16 comes as float32.

    A dictionary of tensors is taken as it is; of a training checkpoint, the network inside it
    (``_chosen``). Raises BadFileError for anything else: damaged files, names that are not
    tensors, and files that need PyTorch, with the line to type in PyTorch.
    """
    try:
        with open_file(path) as file:
            if zipfile.is_zipfile(file):
                with zipfile.ZipFile(file) as archive:
                    nest, values = read_archive(archive)
                    return filled(_chosen(nest), values)
        return _from_stream(path)
    except DAMAGE as problem:
        text = reason(problem)
        raise BadFileError(
            f"{path}: cannot be read as a PyTorch file ({text}){_advice(text, path)}"
        ) from problem


def _advice(text: str, path: Path) -> str:
    """What to do about a file that was refused; PyTorch 2 with weights_only=True refuses it too."""
    if _RUNS.match(text):
        return "; opened with PyTorch it would run a program: do not"
    if text.startswith(PLAIN):
        return "; where you trust it, read it with pickle and write it with torch.save"
    if not _OBJECTS.match(text):
        return "; get the file again"
    return (
        "; where you trust the file (this runs what is in it), save its tensors alone and plain "
        "with PyTorch, and give tensors.pth:\n"
        f"  python -c \"import torch; c = torch.load('{path}', map_location='cpu', "
        "weights_only=False); c = c.get('state_dict', c.get('model', c)) if isinstance(c, dict) "
        "else c; c = c if isinstance(c, dict) else c.state_dict(); "
        "torch.save({k: (v.dequantize() if v.is_quantized else v.to_dense().float())"
        ".resolve_neg().contiguous() for k, v in c.items() if torch.is_tensor(v)}, 'tensors.pth')\""
    )


def _from_stream(path: Path) -> dict[str, np.ndarray]:
    with open_file(path) as file:
        nest, loaded = read_stream(file, path.stat().st_size)
    return filled(_chosen(nest), lambda storage: loaded[storage.key])


def _chosen(nest: Any, depth: int = 4) -> dict[str, Tensor]:
    """The tensors of the network in what the pickle holds.

    Of dictionaries inside one another, the first of ``_NETWORKS`` that is there and holds as
    many tensors as stand beside it (``best_acc1`` of PyTorch's ImageNet example stands beside
    ``state_dict``); else the only dictionary of tensors there is. Optimizers are passed over, and
    what lies deeper than ``depth``.
    """
    if not isinstance(nest, dict):
        raise UserError(f"holds {kind_of(nest)}, wanted a dictionary of tensors")
    flat = {name: t for name, t in nest.items() if isinstance(t, Tensor) and isinstance(name, str)}
    inner = {
        name: found
        for name, part in nest.items()
        if isinstance(part, dict) and name not in _NO_NETWORKS and (found := _inside(part, depth))
    }
    for name in (*_NETWORKS, *(inner if len(inner) == 1 else ())):
        if name in inner and len(inner[name]) >= len(flat):
            return inner[name]
    if flat:
        return flat
    raise UserError(f"no single dictionary of tensors among {sorted(map(str, nest))[:20]}")


def _inside(part: dict, depth: int) -> dict[str, Tensor]:
    """The tensors of one entry of a checkpoint; empty where it holds none."""
    if depth == 0:
        return {}
    try:
        return _chosen(part, depth - 1)
    except UserError:
        return {}
