"""The pre-norm transformer block as a pure function of its weights, and what it saw on the way.

Dosovitskiy et al. 2021, equations 2 and 3. Tokens are (b,t,k). Not here:
parameters and patches (``backbones.vit``), explanations (``explain.relevance``).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from wsss_jax.ops.channels import add_bias, scale_shift
from wsss_jax.types import Affine, BlockRecord, BlockWeights, Form

jax.tree_util.register_static(Form)  # here, as types loads no jax; all who compute come by

Tokens = Float[Array, "b t k"]


def layer_norm(x: Float[Array, "*b k"], norm: Affine) -> Float[Array, "*b k"]:
    """Normalise over the last axis in float32, return in the dtype that came."""
    y = x.astype(jnp.float32)
    y = y - y.mean(axis=-1, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.square(y).mean(axis=-1, keepdims=True) + norm.form.epsilon)
    scale, bias = norm.kernel.astype(jnp.float32), norm.bias.astype(jnp.float32)
    return scale_shift(y, scale, bias).astype(x.dtype)


def affine(x: Float[Array, "*b k"], weights: Affine) -> Float[Array, "*b n"]:
    """x @ kernel + bias; the weights follow the dtype of x."""
    y = x @ weights.kernel.astype(x.dtype)
    return add_bias(y, weights.bias.astype(x.dtype))


def activate(hidden: Float[Array, "*b k"], expand: Affine) -> Float[Array, "*b k"]:
    """The perceptron's activation behind its first layer: exact GELU, or x σ(1.702 x)."""
    if expand.form.quick:
        return hidden * jax.nn.sigmoid(1.702 * hidden)
    return jax.nn.gelu(hidden, approximate=False)


def block(
    weights: BlockWeights,
    x: Tokens,
    *,
    heads: int,
    keys: Bool[Array, "b t"] | None = None,
    nudge: Float[Array, "b n t t"] | None = None,
) -> tuple[Tokens, BlockRecord]:
    """One block, and its record.

    keys: the tokens that may be attended to, at least one per row. nudge is added to the attention
    matrix; the gradient at zeros is the gradient at the attention itself.
    """
    normed = layer_norm(x, weights.norm1)
    mixed, attention, parts = attend(normed, weights, heads=heads, keys=keys, nudge=nudge)
    middle = x + affine(mixed, weights.project)
    out, hidden = perceive(middle, weights)
    record = BlockRecord(weights, keys, x, *parts, attention, mixed, middle, hidden)
    return out, record


def advance(
    weights: BlockWeights, x: Tokens, *, heads: int, keys: Bool[Array, "b t"] | None = None
) -> Tokens:
    """One block without a record.

    On one CPU the heads attend one after another, as a single matrix stays in its cache. On several
    devices they cannot, since images lie on different ones.
    """
    query, key, value = _query_key_value(layer_norm(x, weights.norm1), weights, heads)
    if jax.default_backend() == "cpu" and jax.device_count() == 1:
        mixed = _one_by_one(query, key, value, keys)
    else:
        mixed = jnp.einsum("bnqt,bntd->bnqd", _attention(query, key, keys), value)
    mixed = mixed.transpose(0, 2, 1, 3).reshape(x.shape)
    return perceive(x + affine(mixed, weights.project), weights)[0]


def attend(
    x: Tokens,
    weights: BlockWeights,
    *,
    heads: int,
    keys: Bool[Array, "b t"] | None = None,
    nudge: Float[Array, "b n t t"] | None = None,
) -> tuple[Tokens, Float[Array, "b n t t"], tuple[Array, Array, Array]]:
    """Of normed tokens: the heads' results side by side, attention, and query, key and value."""
    query, key, value = _query_key_value(x, weights, heads)
    attention = _attention(query, key, keys)
    if nudge is not None:
        attention = attention + nudge.astype(attention.dtype)
    mixed = jnp.einsum("bnqt,bntd->bqnd", attention, value).reshape(x.shape)
    return mixed, attention, (query, key, value)


def rotated(x: Float[Array, "b n t d"], turn: Float[Array, "2 _ 1 t d"]) -> Float[Array, "b n t d"]:
    """Pairs of channels (i, i + d/2) turned by angles; their cosines and sines are given.

    Su et al. 2021, in the layout of DINOv3.
    """
    cosine, sine = turn.astype(x.dtype)
    first, second = jnp.split(x, 2, axis=-1)
    turned = jnp.concatenate([-second, first], axis=-1)
    return x * jnp.broadcast_to(cosine, x.shape) + turned * jnp.broadcast_to(sine, x.shape)


def perceive(middle: Tokens, weights: BlockWeights) -> tuple[Tokens, Float[Array, "b t k4"]]:
    """The second half of a block: its output, and the perceptron before its activation."""
    hidden = affine(layer_norm(middle, weights.norm2), weights.expand)
    return middle + affine(activate(hidden, weights.expand), weights.contract), hidden


def output(record: BlockRecord) -> Tokens:
    """The tokens that left a recorded block."""
    active = activate(record.hidden, record.weights.expand)
    return record.middle + affine(active, record.weights.contract)


def _query_key_value(
    x: Tokens, weights: BlockWeights, heads: int
) -> tuple[Float[Array, "b n t d"], Float[Array, "b n t d"], Float[Array, "b n t d"]]:
    b, t, k = x.shape
    parts = affine(x, weights.query_key_value).reshape(b, t, 3, heads, k // heads)
    query, key, value = parts.transpose(2, 0, 3, 1, 4)
    if weights.turn is not None:
        query, key = rotated(query, weights.turn), rotated(key, weights.turn)
    return query, key, value


def _one_by_one(
    query: Float[Array, "b n t d"],
    key: Float[Array, "b n t d"],
    value: Float[Array, "b n t d"],
    keys: Bool[Array, "b t"] | None,
) -> Float[Array, "b n t d"]:
    """What each head of each image reads, in turn; the gradient computes its attention anew."""

    @jax.checkpoint
    def head(parts: tuple[Array, Array, Array, Array | None]) -> Array:
        query, key, value, keys = parts
        here = None if keys is None else keys[None]
        return _attention(query[None, None], key[None, None], here)[0, 0] @ value

    parts = (part.reshape(-1, *part.shape[2:]) for part in (query, key, value))
    keys = None if keys is None else jnp.repeat(keys, query.shape[1], axis=0)
    return jax.lax.map(head, (*parts, keys)).reshape(query.shape)


def _attention(
    query: Float[Array, "b n t d"], key: Float[Array, "b n t d"], keys: Bool[Array, "b t"] | None
) -> Float[Array, "b n t t"]:
    """Softmax in float32 over the tokens that may be attended to; the others get exactly zero."""
    scores = jnp.einsum("bnqd,bntd->bnqt", query, key, preferred_element_type=jnp.float32)
    scores = scores * query.shape[-1] ** -0.5
    if keys is not None:
        scores = jnp.where(keys[:, None, None, :], scores, -jnp.inf)
    return jax.nn.softmax(scores, axis=-1).astype(query.dtype)
