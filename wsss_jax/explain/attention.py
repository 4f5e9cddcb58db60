"""Maps read off a transformer's attention: raw, rollout, attention Grad-CAM, GETAM, LeGrad.

An attention explainer is a pure, jit-able function of an ``Attentive``, images (b,H,W,3) in [0, 1]
and labels (b,c); it returns RAW maps (b,h,w,c) on the grid of patches, zero for classes that are
not among the labels. Raw attention and rollout do not know classes: each label gets the same map.
Source: Abnar & Zuidema 2020, the code of Chefer et al. 2021, Sun et al. 2021, and Bousselham et al.
2025. Relevance is in ``relevance``.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from wsss_jax.explain.contract import Images, Labels, Maps, check_labels, over_labels
from wsss_jax.ops import tokens
from wsss_jax.types import Attentive, BlockRecord

Matrix = Float[Array, "b t t"]
Heads = Float[Array, "b n t t"]
Row = Float[Array, "b t"]
Map = Float[Array, "b h w"]


def raw_attention(attentive: Attentive, images: Images, labels: Labels) -> Maps:
    """What the class token attends to in the last block, mean over heads."""
    _, blocks = recorded(attentive, images, labels)
    row = blocks[-1].attention.mean(axis=1)[:, 0].astype(jnp.float32)
    return _for_every_label(on_grid(row, images, attentive.stride), labels)


def rollout(attentive: Attentive, images: Images, labels: Labels, *, start_layer: int = 1) -> Maps:
    """Attention rollout: the product over blocks of (attention + I), rows made to sum to one.

    start_layer: number, from 0, of the first block that counts; the published evaluations leave
    out the first block.
    """
    _, blocks = recorded(attentive, images, labels)
    matrices = [rolled(seen.attention) for seen in blocks]
    row = class_row(matrices, start_layer=start_layer)
    return _for_every_label(on_grid(row, images, attentive.stride), labels)


def attention_grad_cam(attentive: Attentive, images: Images, labels: Labels) -> Maps:
    """Grad-CAM with the last block's heads as channels, without its final ReLU.

    A head's weight is the mean gradient of the class logit at what the class token attends to.
    """
    blocks, gradients = differentiated(attentive, images, labels)
    attention = blocks[-1].attention[:, :, 0].astype(jnp.float32)
    h, w = (-(-n // attentive.stride) for n in images.shape[1:3])
    places, keys = slice(1, 1 + h * w), blocks[-1].keys
    cells = 1.0 if keys is None else keys[:, None, places].astype(jnp.float32)

    def explain(chosen: Float[Array, "b c"]) -> Map:
        gradient = gradients(chosen)[-1][:, :, 0, places]
        count = jnp.broadcast_to(cells, gradient.shape).sum(axis=-1)
        weights = (gradient * cells).sum(axis=-1) / jnp.maximum(count, 1)
        row = (attention * weights[..., None]).mean(axis=1)
        return on_grid(row, images, attentive.stride)

    return over_labels(labels, explain)


def getam(
    attentive: Attentive, images: Images, labels: Labels, *, start_layer: int | None = None
) -> Maps:
    """GETAM: attention times its gradient's square, element by element, summed over blocks.

    With g the gradient of the class logit at a block's attention A, a block gives the mean over
    heads of relu(g A) times the mean over heads of relu(g); the map is the class token's row.

    start_layer: first block that counts, from 0; None takes the later half, as the published
    training does (6 of 12).
    Source: Sun et al. 2021 (GETAM, arXiv 2112.02841), as in its code; where we differ: its network
    averages the patches for its logits, ours reads the class token.
    """
    blocks, gradients = differentiated(attentive, images, labels)
    first = len(blocks) // 2 if start_layer is None else start_layer
    _check_start(first, len(blocks))
    rows = [seen.attention[:, :, 0].astype(jnp.float32) for seen in blocks[first:]]

    def explain(chosen: Float[Array, "b c"]) -> Map:
        slopes = [gradient[:, :, 0] for gradient in gradients(chosen)[first:]]
        parts = [getam_row(row, slope) for row, slope in zip(rows, slopes, strict=True)]
        return on_grid(sum(parts[1:], parts[0]), images, attentive.stride)

    return over_labels(labels, explain)


def getam_row(attention: Float[Array, "b n t"], gradient: Float[Array, "b n t"]) -> Row:
    """What one block gives GETAM, of the class token's row of each head."""
    weighed = jax.nn.relu(attention * gradient).mean(axis=1)
    return weighed * jax.nn.relu(gradient).mean(axis=1)


def legrad(attentive: Attentive, images: Images, labels: Labels, *, start_layer: int = 0) -> Maps:
    """LeGrad: how much more attention to a patch, in any block, would raise the class.

    Block l is read as if it were the last: s_l is the class logit of the mean of the tokens that
    leave it. The map is the mean over blocks, heads n and queries q of relu(∂s_l / ∂A_l[n, q, t])
    at each patch t; no gradient passes through more than one block.

    start_layer: first block that counts, from 0. The paper aggregates over all blocks, its code
    over the last two unless told otherwise.
    Source: Bousselham et al. (LeGrad, arXiv 2404.03214, ICCV 2025), pooled as in its code for CLIP.
    We differ in s_l, a logit in place of a cosine to a text, and do not scale maps to [0, 1].
    """
    _, blocks = recorded(attentive, images, labels)
    _check_start(start_layer, len(blocks))
    reads = [_read_mean(attentive, seen) for seen in blocks[start_layer:]]
    walks = [_walk_back(seen) for seen in blocks[start_layer:]]
    keys, t = blocks[-1].keys, blocks[-1].tokens.shape[1]
    queries = jnp.full((1, 1), t, jnp.float32) if keys is None else keys.sum(axis=1)[:, None]

    def explain(chosen: Float[Array, "b c"]) -> Map:
        rows = [
            jax.nn.relu(walk(*read(chosen))[1].astype(jnp.float32)).mean(axis=1).sum(axis=1)
            for read, walk in zip(reads, walks, strict=True)
        ]
        row = sum(rows[1:], rows[0]) / (len(rows) * jnp.maximum(queries, 1).astype(jnp.float32))
        return on_grid(row, images, attentive.stride)

    return over_labels(labels, explain)


def recorded(
    attentive: Attentive, images: Images, labels: Labels
) -> tuple[Float[Array, "b c"], list[BlockRecord]]:
    """Logits and records, once the labels have been found to fit."""
    logits, blocks = attentive.record(images)
    check_labels(labels, *logits.shape)
    return logits, blocks


def differentiated(
    attentive: Attentive, images: Images, labels: Labels
) -> tuple[list[BlockRecord], Callable[[Array], list[Array]]]:
    """Records, and the gradient of chosen logits (b,c) at every block's attention (b,n,t,t).

    The network is linearised once; every call of the second result is one walk back. vmap it for
    several classes at once.
    """
    _, blocks = recorded(attentive, images, labels)
    _, read_back = jax.vjp(lambda x: read_out(attentive, x), tokens.output(blocks[-1]))
    walks = [_walk_back(seen) for seen in blocks]

    def gradients(chosen: Float[Array, "b c"]) -> list[Array]:
        (g,), found = read_back(chosen), []
        for walk in reversed(walks):
            g, at_attention = walk(g)
            found.append(at_attention.astype(jnp.float32))
        return found[::-1]

    return blocks, gradients


def read_out(attentive: Attentive, last: Float[Array, "b t k"]) -> Float[Array, "b c"]:
    """Class logits from the tokens that left the last block."""
    token = tokens.layer_norm(last, attentive.norm)[:, 0]
    return tokens.affine(token.astype(jnp.float32), attentive.head)


def rolled(attention: Heads) -> Matrix:
    """Mean over heads plus identity, for the residual path; rows sum to one."""
    mixed = with_identity(attention.mean(axis=1).astype(jnp.float32))
    return mixed / mixed.sum(axis=-1, keepdims=True)


def with_identity(matrix: Matrix) -> Matrix:
    """The matrix plus identity."""
    return matrix + jnp.eye(matrix.shape[-1])[None]


def class_row(matrices: list[Array], *, start_layer: int) -> Row:
    """The class token's row of the product of all matrices from ``start_layer``, latest leftmost.

    Only the row is multiplied, never the matrices: t times less work.
    """
    _check_start(start_layer, len(matrices))
    row = matrices[-1][:, 0]
    for matrix in reversed(matrices[start_layer:-1]):
        row = jnp.einsum("bs,bst->bt", row, matrix, precision="highest")
    return row


def on_grid(row: Row, images: Images, stride: int) -> Map:
    """The values of the patch tokens as a map; those of the class token and registers go."""
    h, w = (-(-n // stride) for n in images.shape[1:3])
    return row[:, 1 : 1 + h * w].reshape(-1, h, w)


def _check_start(start_layer: int, layers: int) -> None:
    if not 0 <= start_layer < layers:
        raise ValueError(f"start_layer is {start_layer}, wanted 0 to {layers - 1}")


def _read_mean(attentive: Attentive, seen: BlockRecord) -> Callable[[Array], tuple[Array]]:
    """From chosen logits (b,c) back to the tokens that left a block, whose real ones are pooled."""

    def logits(out: Array) -> Array:
        real = jnp.ones(out.shape[:2], bool) if seen.keys is None else seen.keys
        weights = real[..., None].astype(out.dtype)
        mean = (out * weights).sum(axis=1) / jnp.maximum(weights.sum(axis=1), 1)
        token = tokens.layer_norm(mean, attentive.norm)
        return tokens.affine(token.astype(jnp.float32), attentive.head)

    return jax.vjp(logits, tokens.output(seen))[1]


def _walk_back(seen: BlockRecord) -> Callable[[Array], tuple[Array, Array]]:
    heads, nothing = seen.query.shape[1], jnp.zeros_like(seen.attention)

    def run(x: Array, nudge: Array) -> Array:
        return tokens.block(seen.weights, x, heads=heads, keys=seen.keys, nudge=nudge)[0]

    return jax.vjp(run, seen.tokens, nothing)[1]


def _for_every_label(values: Map, labels: Labels) -> Maps:
    return values[..., None] * labels[:, None, None, :].astype(jnp.float32)
