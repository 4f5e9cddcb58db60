"""Networks filled with values that compile nothing, and how near outputs must be."""

import jax.numpy as jnp
import numpy as np
from flax import nnx

from wsss_jax.weights import import_names


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
