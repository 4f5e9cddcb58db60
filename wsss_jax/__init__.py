"""wsss_jax: from image-level labels to pixel masks, in JAX, with a combiner for many systems."""

from wsss_jax.xla import keep_reductions_right

__version__ = "0.1.0"

keep_reductions_right()
