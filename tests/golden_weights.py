"""Weights of the stored reference networks: drawn from their names, or stored with outputs."""

import json
import zlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from wsss_jax.weights import import_names
from wsss_jax.weights import loading as weights


class Reproduced(NamedTuple):
    """What came out of our network, what should have, and the arrays that filled it."""

    maps: list
    stored: dict
    arrays: dict


def drawn(name, shape, salt=""):
    """The value of a parameter, from its name alone (README of the reference outputs)."""
    seed = np.random.PCG64(zlib.crc32((salt + name).encode()))
    x = np.random.Generator(seed).standard_normal(shape).astype(np.float32)
    if name.endswith("running_var"):
        return np.exp(np.float32(0.1) * x)
    if name.endswith("running_mean"):
        return np.float32(0.1) * x
    if len(shape) == 1:
        return np.float32(1 if name.endswith("weight") else 0) + np.float32(0.1) * x
    return x * np.float32(np.sqrt(1.0 / np.prod(shape[1:])))


def reproduce(path, make):
    """Fill the network that ``make`` builds through its name table, and run the stored input."""
    with np.load(path) as file:
        stored = {name: file[name] for name in file.files}
    meta = json.loads(str(stored["meta_json"]))
    if "parameters" in meta:
        arrays = {name: drawn(name, shape, meta["salt"]) for name, shape in meta["parameters"]}
    else:
        found = {
            name.removeprefix("weights/"): stored[name] for name in stored if "weights/" in name
        }
        arrays = {name: value.astype(np.float32) for name, value in found.items()}
    module = nnx.eval_shape(make)
    weights.fill(module, arrays, called=str(path))
    graph, state = nnx.split(module)
    images = jnp.asarray(stored["input"].transpose(0, 2, 3, 1))
    maps = jax.jit(lambda state, x: nnx.merge(graph, state)(x))(state, images)
    return Reproduced([np.asarray(x).transpose(0, 3, 1, 2) for x in maps], stored, arrays)


def assert_close(ours, theirs, share=1e-4):
    """Within a share of the largest magnitude; whole networks are asked for 1e-3, we reach 5e-6."""
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=share * np.abs(theirs).max())


def filled(make, seed=0):
    """The network that ``make`` builds, with values from NumPy: its own start compiles for long."""
    module, draw = nnx.eval_shape(make), np.random.default_rng(seed)
    for path, variable in import_names.values_of(module).items():
        value = draw.standard_normal(variable.shape, np.float32)
        if len(variable.shape) > 1:
            value *= np.sqrt(2 / np.prod(variable.shape[:-1]), dtype=np.float32)
        elif path.endswith(("scale", "var")):
            value = np.exp(np.float32(0.1) * value)
        variable.set_value(jnp.asarray(value))
    return module
