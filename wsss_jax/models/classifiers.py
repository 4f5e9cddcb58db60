"""Which head a classifier has, by name: plain, with a regularised kernel, or on the class token."""

from flax import nnx
from jaxtyping import PRNGKeyArray

from wsss_jax.config import lookup
from wsss_jax.errors import UserError
from wsss_jax.models.heads import KERNELS, Classifier
from wsss_jax.models.token_classifier import TokenBackbone, TokenClassifier

CLASS_TOKEN = "class_token"
"""The head that reads a transformer's class token; it has no class maps."""

HEADS = (*KERNELS, CLASS_TOKEN)
"""Names of all heads."""


def with_head(plain: Classifier, head: str, *, key: PRNGKeyArray) -> Classifier | TokenClassifier:
    """A classifier on the backbone of ``plain`` whose head is the one named.

    A name of KERNELS keeps the kernel and changes what is made of it; ``class_token`` starts a
    new layer from ``key``. Raises ValueError for an unknown name, or a class token wanted of a
    network that has none.
    """
    lookup(dict.fromkeys(HEADS), head, "head")
    if head != CLASS_TOKEN:
        plain.effective = KERNELS[head]
        return plain
    if not isinstance(plain.backbone, TokenBackbone):
        raise UserError(f"head {head!r} needs a vision transformer, not {type(plain.backbone)}")
    if plain.dropout.rate:
        raise UserError(f"head {head!r} has no dropout, got rate {plain.dropout.rate}; set it to 0")
    return TokenClassifier(plain.backbone, plain.kernel[...].shape[1], rngs=nnx.Rngs(key))
