"""Relevance in vision transformers: transformer attribution, LRP, and attribution without LRP.

All are attention explainers (see ``attention``): pure functions of an ``Attentive``, images and
labels. The network runs forward once; for each label the class's relevance, and where needed its
gradient, walk back over the records. Source: Chefer, Gur & Wolf, CVPR 2021 (attribution, LRP) and
ICCV 2021 (gradient × attention). Their code takes one image at a time; here sums are per image,
so batches give the same. The rules are in ``relevance_rules``.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from wsss_jax.explain import relevance_rules
from wsss_jax.explain.attention import (
    class_row,
    differentiated,
    on_grid,
    recorded,
    with_identity,
)
from wsss_jax.explain.contract import Images, Labels, Maps, over_labels
from wsss_jax.explain.relevance_rules import BASELINE, CHEFER, Rules, clone, product
from wsss_jax.ops import tokens
from wsss_jax.types import Attentive, BlockRecord

Tokens = Float[Array, "b t k"]
Heads = Float[Array, "b n t t"]
Chosen = Float[Array, "b c"]
Map = Float[Array, "b h w"]


def attribution(
    attentive: Attentive,
    images: Images,
    labels: Labels,
    *,
    start_layer: int = 1,
    rules: Rules = CHEFER,
) -> Maps:
    """Transformer attribution: attention's relevance times its gradient, rolled out over blocks.

    Per block I + mean over heads of the positive part of gradient × relevance; the class token's
    row of their product. Rows are not normalised, as in the published code. start_layer: first
    block that counts, from 0; the published maps leave out the first.
    """
    blocks, gradients = differentiated(attentive, images, labels)

    def explain(chosen: Chosen) -> Map:
        relevances = propagated(attentive, blocks, chosen, rules)[0]
        matrices = _weighed(gradients(chosen), relevances)
        return on_grid(class_row(matrices, start_layer=start_layer), images, attentive.stride)

    return over_labels(labels, explain)


def gradient_attention(
    attentive: Attentive, images: Images, labels: Labels, *, start_layer: int = 0
) -> Maps:
    """Transformer attribution with attention in place of its relevance (ICCV 2021, equations 5, 6).

    Needs no rule for any layer, so the authors advise it for networks that differ from ViT.
    """
    blocks, gradients = differentiated(attentive, images, labels)
    attentions = [seen.attention.astype(jnp.float32) for seen in blocks]

    def explain(chosen: Chosen) -> Map:
        matrices = _weighed(gradients(chosen), attentions)
        return on_grid(class_row(matrices, start_layer=start_layer), images, attentive.stride)

    return over_labels(labels, explain)


def lrp_rollout(
    attentive: Attentive,
    images: Images,
    labels: Labels,
    *,
    start_layer: int = 1,
    rules: Rules = CHEFER,
) -> Maps:
    """Rollout of attention's positive relevance, without gradients and without normalising."""
    _, blocks = recorded(attentive, images, labels)

    def explain(chosen: Chosen) -> Map:
        relevances = propagated(attentive, blocks, chosen, rules)[0]
        matrices = [with_identity(jax.nn.relu(r).mean(axis=1)) for r in relevances]
        return on_grid(class_row(matrices, start_layer=start_layer), images, attentive.stride)

    return over_labels(labels, explain)


def partial_lrp(
    attentive: Attentive, images: Images, labels: Labels, *, rules: Rules = BASELINE
) -> Maps:
    """Relevance of the last block's attention: positive part, mean over heads, class token's row.

    Source: Voita et al. 2019, as Chefer et al. compare with it.
    """
    _, blocks = recorded(attentive, images, labels)

    def explain(chosen: Chosen) -> Map:
        relevance = _through_head(attentive, blocks[-1], chosen, rules)
        at_attention = through_block(blocks[-1], relevance, rules)[1]
        row = jax.nn.relu(at_attention).mean(axis=1)[:, 0]
        return on_grid(row, images, attentive.stride)

    return over_labels(labels, explain)


def token_lrp(
    attentive: Attentive, images: Images, labels: Labels, *, rules: Rules = CHEFER
) -> Maps:
    """Relevance of the tokens that enter the first block, summed over channels.

    The full LRP of a hybrid ends here: its patches are cells of a convolutional map.
    """
    _, blocks = recorded(attentive, images, labels)

    def explain(chosen: Chosen) -> Map:
        relevance = propagated(attentive, blocks, chosen, rules)[1]
        return on_grid(relevance.sum(axis=-1), images, attentive.stride)

    return over_labels(labels, explain)


def full_lrp(
    attentive: Attentive, images: Images, labels: Labels, *, rules: Rules = CHEFER
) -> Maps:
    """Relevance of the pixels (b,H,W,c), summed over RGB.

    Pixels are the network's own normalised ones, within the bounds of each image. Raises
    ValueError where pixels do not become tokens by one linear layer (take ``token_lrp``).
    """
    embedding = attentive.embedding
    if embedding is None:
        raise ValueError("this network's patches are no linear function of pixels: use token_lrp")
    _, blocks = recorded(attentive, images, labels)
    cut, bounds = embedding.patches(images)
    b, h, w, p, _, _ = cut.shape
    flat = cut.reshape(b, h * w, -1).astype(jnp.float32)
    first = tokens.affine(flat, embedding.linear)
    token = jnp.broadcast_to(embedding.token.astype(first.dtype), (b, 1, first.shape[-1]))
    embedded = jnp.concatenate([token, first], axis=1)
    came_in = blocks[0].tokens.astype(jnp.float32)
    further = jnp.zeros((b, came_in.shape[1] - embedded.shape[1], first.shape[-1]))
    embedded = jnp.concatenate([embedded, further], axis=1)
    position = came_in - embedded

    def explain(chosen: Chosen) -> Map:
        relevance = propagated(attentive, blocks, chosen, rules)[1]
        relevance = rules.add(embedded, position, relevance)[0][:, 1 : 1 + h * w]
        limits = jnp.broadcast_to(bounds[:, None], (b, h * w, 2))
        pixels = relevance_rules.bounded(flat, embedding.linear.kernel, relevance, limits)
        squares = pixels.reshape(b, h, w, p, p, 3).sum(axis=-1).transpose(0, 1, 3, 2, 4)
        return squares.reshape(b, h * p, w * p)[:, : images.shape[1], : images.shape[2]]

    return over_labels(labels, explain)


def propagated(
    attentive: Attentive, blocks: list[BlockRecord], chosen: Chosen, rules: Rules
) -> tuple[list[Array], Tokens]:
    """Relevance of every block's attention (b,n,t,t), and of the tokens that came in first.

    chosen: relevance of the logits, one-hot rows for one class.
    """
    relevance, found = _through_head(attentive, blocks[-1], chosen, rules), []
    for seen in reversed(blocks):
        relevance, at_attention = through_block(seen, relevance, rules)
        found.append(at_attention)
    return found[::-1], relevance


def through_block(seen: BlockRecord, relevance: Tokens, rules: Rules) -> tuple[Tokens, Heads]:
    """Relevance of the tokens that entered a block, and of its attention."""
    seen = jax.tree.map(_wide, seen)
    weights, active = seen.weights, tokens.activate(seen.hidden, seen.weights.expand)
    kept, perceived = rules.add(seen.middle, tokens.affine(active, weights.contract), relevance)
    perceived = rules.linear(active, weights.contract.kernel, perceived)
    normed = tokens.layer_norm(seen.middle, weights.norm2)
    perceived = rules.linear(normed, weights.expand.kernel, perceived)
    relevance = clone(seen.middle, kept, perceived)

    kept, attended = rules.add(seen.tokens, tokens.affine(seen.mixed, weights.project), relevance)
    attended, at_attention = _through_attention(seen, attended, rules)
    return clone(seen.tokens, kept, attended), at_attention


def _through_attention(seen: BlockRecord, relevance: Tokens, rules: Rules) -> tuple[Tokens, Heads]:
    b, n, t, d = seen.value.shape
    mixed = rules.linear(seen.mixed, seen.weights.project.kernel, relevance)
    mixed = mixed.reshape(b, t, n, d).transpose(0, 2, 1, 3)
    at_attention, value = product(_mix, seen.attention, seen.value, mixed)
    query, key = product(_compare, seen.query, seen.key, at_attention)
    parts = jnp.stack([query, key, value], axis=2).transpose(0, 3, 2, 1, 4).reshape(b, t, 3 * n * d)
    normed = tokens.layer_norm(seen.tokens, seen.weights.norm1)
    return rules.linear(normed, seen.weights.query_key_value.kernel, parts), at_attention


def _through_head(attentive: Attentive, last: BlockRecord, chosen: Chosen, rules: Rules) -> Tokens:
    """Relevance of the tokens that left the last block: all of it on the class token."""
    out = tokens.layer_norm(tokens.output(last).astype(jnp.float32), attentive.norm)
    token = rules.linear(out[:, 0], attentive.head.kernel.astype(jnp.float32), chosen)
    return jnp.zeros_like(out).at[:, 0].set(token)


def _weighed(gradients: list[Array], values: list[Array]) -> list[Array]:
    """Per block I + mean over heads of the positive part of gradient × value."""
    pairs = zip(gradients, values, strict=True)
    return [with_identity(jax.nn.relu(g * v).mean(axis=1)) for g, v in pairs]


def _mix(attention: Heads, value: Float[Array, "b n t d"]) -> Float[Array, "b n t d"]:
    return jnp.einsum("bnqt,bntd->bnqd", attention, value, precision="highest")


def _compare(query: Float[Array, "b n t d"], key: Float[Array, "b n t d"]) -> Heads:
    return jnp.einsum("bnqd,bntd->bnqt", query, key, precision="highest")


def _wide(x: Array) -> Array:
    return x.astype(jnp.float32) if jnp.issubdtype(x.dtype, jnp.floating) else x
