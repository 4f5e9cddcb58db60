"""The data that flows between stages: samples, batches, score maps, confusion counts.

Axis letters are the same everywhere: b batch, h w grid, H W image, c classes, k present classes or
channels, s systems, p pixel pairs. Labels are 0-based over C foreground classes; masks hold
0 = background, 1..C = class + 1, IGNORE = unknown (``wsss_jax.data.classes`` converts between the
two numberings). Not here: anything that reads files or computes. jax is imported with the first
batch that is made and not before, so that what only looks at files starts at once.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, get_args, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

if TYPE_CHECKING:
    from jaxtyping import Array, PRNGKeyArray, PyTree

    Leaf = Array
    Variables = PyTree
    Structure = Any
else:
    # Unchecked where code runs: jax puts shapes and shardings there too.
    Leaf = Any
    """An array in a tree."""
    Variables = Any
    """Parameters of a network, or its running statistics: a tree of arrays (``flax.nnx.State``)."""
    Structure = Any
    """A network without its arrays (``flax.nnx.GraphDef``)."""

IGNORE = 255
"""Mask value of pixels that count for nothing."""

Kind = Literal["activation", "probability", "logit"]
"""What score values mean: activations >= 0, probabilities in [0, 1], or free logits."""

Size = tuple[int, int]
"""Height and width in pixels, always in this order."""


@dataclass(frozen=True)
class Sample:
    """One photograph on the host: RGB pixels, image-level labels and, for evaluation, its mask.

    boxes: top, left, bottom, right of one box of each class in shares of the photograph, zeros
    where there is none; None where nobody asked for boxes.
    """

    id: str
    image: UInt8[np.ndarray, "H W 3"]
    labels: Bool[np.ndarray, " c"]
    mask: UInt8[np.ndarray, "H W"] | None = None
    boxes: Float[np.ndarray, "c 4"] | None = None


@dataclass(frozen=True)
class Batch:
    """Images of one canvas size, as arrays or device arrays.

    images: (b,h,w,3) float32 RGB in [0, 1], zero on padding. labels: (b,C) bool.
    masks: (b,h,w) int32 or None. inside: (b,h,w) bool, False on padding.
    real: (b,) bool, False on rows that only fill the batch up.
    boxes: (b,C,4) float32 or None: corners of a box of each class (``Sample.boxes``) in shares of
    the real pixels' rectangle.
    """

    images: Leaf
    labels: Leaf
    inside: Leaf
    real: Leaf
    masks: Leaf | None = None
    boxes: Leaf | None = None

    def __post_init__(self) -> None:
        _register_as_pytree(type(self))

    @property
    def given_masks(self) -> Leaf:
        """The masks. ValueError where the batch has none."""
        if self.masks is None:
            raise ValueError("this batch has no masks; give training_batches a reader of masks")
        return self.masks

    @property
    def given_boxes(self) -> Leaf:
        """The boxes. ValueError where the batch has none."""
        if self.boxes is None:
            raise ValueError("this batch has no boxes; give training_batches a reader of boxes")
        return self.boxes


@dataclass(frozen=True)
class ScoreMaps:
    """Scores of the classes present in one image, on a grid: what every stage reads and writes.

    Background is never among the classes, and absent classes have no map. Maps without classes
    (saliency, edges) are score maps of a single class. ``size`` is the photograph's (H, W) in
    pixels; the grid may be coarser. ``peak`` is each map's maximum before it was normalised: how
    sure the system was that the class is there at all.

    >>> import numpy as np
    >>> import wsss_jax as wj
    >>> maps = np.random.default_rng(0).random((30, 40, 2), np.float32)
    >>> found = wj.ScoreMaps(maps, np.array([4, 14]), (480, 640), maps.max(axis=(0, 1)))
    >>> found.kind, found.classes.tolist()
    ('activation', [4, 14])
    """

    scores: Float[np.ndarray, "h w k"]
    classes: Int[np.ndarray, " k"]
    size: Size
    peak: Float[np.ndarray, " k"]
    kind: Kind = "activation"

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"kind is {self.kind!r}, wanted one of {', '.join(get_args(Kind))}")
        if not (self.scores.shape[-1] == len(self.classes) == len(self.peak)):
            raise ValueError(
                f"{self.scores.shape[-1]} maps for {len(self.classes)} classes and "
                f"{len(self.peak)} peaks; give one of each per class"
            )


@dataclass(frozen=True)
class Confusion:
    """Pixel counts (C+1, C+1), rows truth, columns prediction; ``+`` merges images."""

    counts: Int[np.ndarray, "n n"]

    def __add__(self, other: "Confusion") -> "Confusion":
        return Confusion(self.counts + other.counts)


@runtime_checkable
class Backbone(Protocol):
    """A network body that returns its intermediate maps, finest first.

    lean: which of its stride pixels a cell of the last map looks at: 1, the last, where strided
    windows are padded on the right alone; 0, the first, for symmetric padding; 1/2 for patches.
    """

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels per cell of each returned map."""
        ...

    @property
    def channels(self) -> tuple[int, ...]:
        """Of each returned map."""
        ...

    @property
    def lean(self) -> float:
        """See above."""
        ...

    @property
    def mean(self) -> tuple[float, ...]:
        """Of the images that the weights were learned from, by colour, in [0, 1]."""
        ...

    @property
    def std(self) -> tuple[float, ...]:
        """Their standard deviation."""
        ...

    def __call__(
        self,
        images: "Array",
        *,
        inside: "Array | None" = None,
        rngs: Any = None,
    ) -> "tuple[Array, ...]":
        """Normalised images (b,h,w,3), and which pixels are real, to one map per stride."""
        ...


class Scorer(NamedTuple):
    """What an explanation method needs from a classifier: three pure functions.

    features: images (b,h,w,3) to (b,h',w',k); head: features to class logits (b,c);
    class_maps: features to (b,h',w',c), None unless the head is average pooling and linear.

    >>> import jax.numpy as jnp
    >>> import wsss_jax as wj
    >>> scorer = wj.Scorer(lambda images: images[:, ::2, ::2], lambda maps: maps.mean(axis=(1, 2)))
    >>> scorer.head(scorer.features(jnp.ones((1, 8, 8, 3)))).shape
    (1, 3)
    """

    features: "Callable[[Array], Array]"
    head: "Callable[[Array], Array]"
    class_maps: "Callable[[Array], Array] | None" = None


@dataclass(frozen=True)
class Form:
    """What families of transformers differ in, layer by layer. To jax it is static (``ops``).

    epsilon: added to the variance of a LayerNorm. quick: x σ(1.702 x) in place of GELU behind a
    linear layer, as in CLIP's own weights.
    """

    epsilon: float = 1e-6
    quick: bool = False


class Affine(NamedTuple):
    """x @ kernel + bias: kernel (k,n), bias (n,). Also a norm's scale (k,) and bias (k,)."""

    kernel: Leaf
    bias: Leaf
    form: Form = Form()


class BlockWeights(NamedTuple):
    """What one pre-norm transformer block multiplies by.

    query_key_value: (k,3k), in this order and then by head. expand and contract are the two layers
    of the perceptron. turn: cosines and sines (2,b,1,t,d) by which queries and keys are rotated,
    None where positions were added to the tokens.
    """

    norm1: Affine
    query_key_value: Affine
    project: Affine
    norm2: Affine
    expand: Affine
    contract: Affine
    turn: Leaf | None = None


class BlockRecord(NamedTuple):
    """What one transformer block saw: all that explanations need to walk back through it.

    tokens (b,t,k) came in; query, key, value (b,n,t,d) of n heads; attention (b,n,t,t) after its
    softmax, rows are queries; mixed (b,t,k) the heads' results side by side; middle (b,t,k) the
    tokens after attention; hidden (b,t,4k) before GELU. keys (b,t) marks the tokens that may be
    attended to (None: all), the others have attention exactly zero.
    """

    weights: BlockWeights
    keys: Leaf | None
    tokens: Leaf
    query: Leaf
    key: Leaf
    value: Leaf
    attention: Leaf
    mixed: Leaf
    middle: Leaf
    hidden: Leaf


class Embedding(NamedTuple):
    """How pixels become the first tokens: one linear layer per patch, before positions are added.

    linear: kernel (p*p*3,k). token: (k,) the class token. patches: images (b,H,W,3) in [0, 1] to
    the network's own pixels (b,h,w,p,p,3) and their bounds (b,2), lowest and highest.
    """

    linear: Affine
    token: Leaf
    patches: "Callable[[Array], tuple[Array, Array]]"


class Attentive(NamedTuple):
    """All that an attention explanation needs from a transformer with a class token (token 0).

    record: images (b,H,W,3) in [0, 1] to class logits (b,c) and what each block saw. norm and head
    make the logits from the last block's class token. The tokens after it are cells of ``stride``
    pixels, ceil(H / stride) rows of ceil(W / stride); further ones (registers) are no place.
    embedding is None where pixels do not enter by a linear layer.
    """

    record: "Callable[[Array], tuple[Array, list[BlockRecord]]]"
    norm: Affine
    head: Affine
    stride: int
    embedding: Embedding | None = None


class Provenance(NamedTuple):
    """Weights or maps of others: their name, their licence, and what people provided for them."""

    name: str
    licence: str
    supervision: str


class System(NamedTuple):
    """A learning problem: two pure functions over a state that is data.

    init: key to state. step: (state, batch, key) to (state, metrics); metrics are scalars. A batch
    is any pytree with a field ``images``, as a Batch is.
    """

    init: "Callable[[PRNGKeyArray], PyTree]"
    step: "Callable[[PyTree, Batch, PRNGKeyArray], tuple[PyTree, dict[str, Array]]]"


_PYTREES: set[type] = set()
_LOCK = threading.Lock()  # batches are made in threads too, and jax registers a class only once


def _register_as_pytree(kind: type) -> None:
    """Tell jax the fields of a class as soon as there is an instance that it may take apart."""
    if kind in _PYTREES:
        return
    import jax  # not before: see the top of this file

    with _LOCK:
        if kind not in _PYTREES:
            jax.tree_util.register_dataclass(kind)
            _PYTREES.add(kind)
