"""wsss_jax: from image-level labels to pixel masks, in JAX, with a combiner for many systems."""

__version__ = "0.1.0"
