"""Values drawn from names, and fingerprints of maps: what the stored reference outputs rest on.

NumPy only: ``make_goldens.py`` draws the same weights and images where the references run.
"""

import json
import zlib
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent / "golden"
DIRECTIONS = 32


def normal(name, shape):
    """Standard normal values that depend on the name alone."""
    seed = np.random.PCG64(zlib.crc32(name.encode()))
    return np.random.Generator(seed).standard_normal(shape).astype(np.float32)


def drawn(name, shape):
    """The value of a parameter in PyTorch's layout; networks of any depth stay in range."""
    x = normal(name, shape)
    if name.endswith("running_var"):
        return np.exp(np.float32(0.1) * x)
    if name.endswith("running_mean"):
        return np.float32(0.1) * x
    if len(shape) == 1:
        return np.float32(1 if name.endswith("weight") else 0) + np.float32(0.1) * x
    if "token" in name or "pos_embed" in name:
        return np.float32(0.02) * x
    return x * np.float32(np.sqrt(1.0 / np.prod(shape[1:])))


def fingerprint(maps):
    """Each image's map along fixed random directions, (b, DIRECTIONS), as large as its values."""
    rows = np.asarray(maps, np.float64).reshape(len(maps), -1)
    directions = normal("directions", (DIRECTIONS, rows.shape[1]))
    return rows @ directions.T / np.sqrt(rows.shape[1])


def crf_scene():
    """A photograph of two noisy colours, and probabilities (H,W,3) that roughly fit them."""
    image = np.full((24, 32, 3), 60.0)
    image[:, 16:] = 170
    image += 8 * normal("crf image", image.shape)
    logits = normal("crf logits", (24, 32, 3))
    logits[:, 16:, 1] += 1.5
    logits[:, :16, 0] += 1.5
    probability = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    return image.clip(0, 255).astype(np.uint8), probability.astype(np.float32)


PRIORS = {"one": ((12, 14), (13, 21)), "two": ((9,), (10, 14))}
"""Images of the stored priors: their classes and sizes."""


def prior_scores(id):
    """Scores (k,H,W) in [0, 1] that the stored priors hold."""
    classes, size = PRIORS[id]
    return 1 / (1 + np.exp(-normal(f"prior {id}", (len(classes), *size))))


EXPLAINED = (2, 4)
"""The class of each of two images that the references explain, of six."""


def cam_arrays(kind):
    """Activations and gradients (2,8,4,6) of a layer after ReLU, or of tokens, which have signs."""
    activations = normal(f"activations {kind}", (2, 8, 4, 6))
    gradients = np.float32(0.1) * normal(f"gradients {kind}", (2, 8, 4, 6))
    return np.maximum(activations, 0) if kind == "relu" else activations, gradients


def write_priors(folder):
    """The stored priors as their tools wrote them, a folder for each layout."""
    with np.load(FOLDER / "priors.npz") as file:
        for name in file.files:
            if "/" in name:
                (folder / name).parent.mkdir(exist_ok=True)
                (folder / name).write_bytes(file[name].tobytes())
    return folder


def reference_arrays(name):
    """Drawn weights of a network in ``networks.npz``, and the (h, w) of its images.

    Those of MobileNets as their files have them: kernels (H,W,I,O), with BatchNorm folded in.
    """
    with np.load(FOLDER / "networks.npz") as file:
        about = json.loads(file[f"{name}/about"].tobytes())
    arrays = {name: drawn(name, shape) for name, shape in about["parameters"]}
    for name, value in arrays.items():
        if name.endswith("/kernel"):
            arrays[name] = value.transpose(2, 3, 1, 0)
    return arrays, about["size"]
