"""A trained run as something to explain: its logits, and every method that can explain it.

Methods are pure functions of the weights, so that whoever calls them compiles them, with the
weights as arguments. Raw maps come out; scales, mirror images and stores are in ``stages.explain``.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from jaxtyping import Array, PyTree

from wsss_jax.config import lookup
from wsss_jax.data.classes import ClassList
from wsss_jax.explain import ATTENTION_EXPLAINERS, EXPLAINERS, equations
from wsss_jax.explain.contract import Explainer, logits_of
from wsss_jax.explain.faithfulness import Logits
from wsss_jax.stages.train import trained
from wsss_jax.systems import SYSTEMS, Model, name_of
from wsss_jax.train.state import Weights
from wsss_jax.types import Scorer

Method = Callable[[Weights, Array, Array, Array], Array]
"""(weights, images (b,H,W,3), inside (b,H,W), labels (b,c)) to raw maps (b,h,w,c)."""

ON_TOKENS = (
    "grad_cam",
    "grad_cam_pp",
    "sharpen_focus",
    "layer_cam",
    "xgrad_cam",
    "hires_cam",
    "min_max_grad_cam",
    "d_min_max_grad_cam",
    "ablation_cam",
)
"""Methods that need only features and head: of a class token, on the last block's first norm."""

ON_PIXELS = ("vanilla_gradient", "smooth_grad", "integrated_gradients", "rise")
"""Methods that need only logits."""


class Subject(NamedTuple):
    """A trained classifier.

    classes: what it knows. methods: those that can explain it, by name. logits: (weights, inside
    (b,H,W)) to a function of images. mean: the colour of the training set that it subtracts.
    lean: see ``types.Backbone``. wrapped: an explainer with other settings, or of one's own, as a
    method of this network; of a class token only those that need nothing but logits.
    """

    classes: ClassList
    weights: Weights
    methods: Mapping[str, Method]
    logits: Callable[[Weights, Array], Logits]
    mean: tuple[float, ...]
    lean: float
    wrapped: Callable[[Explainer], Method]


def subject_of(run: Path) -> Subject:
    """The network of a finished run. BadFileError where there is none."""
    training, classes, state = trained(run)
    return subject(training.model, classes, state)


def subject(model: Model, classes: ClassList, state: PyTree) -> Subject:
    """The network of a system's settings and state."""
    explained = SYSTEMS[name_of(model)].explained(model)
    network = explained.structure(len(classes))

    def ask(weights: Weights, inside: Array) -> Any:
        """The scorer, or for a class token the attentive."""
        return explained.scorer(network, *weights)(inside)

    def logits(weights: Weights, inside: Array) -> Logits:
        if explained.attentive:
            return lambda images: ask(weights, inside).record(images)[0]
        return partial(logits_of, ask(weights, inside))

    def last_norm(weights: Weights, inside: Array, images: Array) -> Scorer:
        return network.bind(*weights).last_norm(images, inside)

    if explained.attentive:
        wrapped = partial(_from_pixels, logits=logits)
        methods = _of_class_token(ask, last_norm, wrapped)
    else:
        wrapped = partial(_asked, ask=ask)
        methods = {name: wrapped(explainer) for name, explainer in EXPLAINERS.items()}
    methods |= {name: partial(method, network) for name, method in explained.own.items()}
    mean = network.bind(network.params, network.stats).backbone.mean
    return Subject(
        classes,
        explained.weights(state),
        MappingProxyType(methods),
        logits,
        mean,
        explained.lean,
        wrapped,
    )


def at_layer(subject: Subject, method: str, layer: str) -> Method:
    """A method of features and head, with its features taken at a named layer.

    Raises ValueError for an unknown method, and, once images come, for an unknown layer, naming the
    nearest, or one that is not the only way to the scores. The last block of a transformer has no
    named layers.
    """
    explainer = lookup(EXPLAINERS, method, "explanation method of features and head")
    return subject.wrapped(at_place(explainer, layer))


def at_place(explainer: Explainer, layer: str) -> Explainer:
    """The explainer with its features taken at a named layer."""

    def there(scorer: Scorer, images: Array, labels: Array) -> Array:
        return explainer(equations.at_layer(scorer, images, layer), images, labels)

    return there


def _of_class_token(
    ask: Callable[..., Any],
    last_norm: Callable[..., Scorer],
    wrapped: Callable[[Explainer], Method],
) -> dict[str, Method]:
    def at_norm(explainer: Explainer) -> Method:
        return lambda weights, images, inside, labels: explainer(
            last_norm(weights, inside, images), images, labels
        )

    return {
        **{name: _asked(explainer, ask) for name, explainer in ATTENTION_EXPLAINERS.items()},
        **{name: at_norm(EXPLAINERS[name]) for name in ON_TOKENS},
        **{name: wrapped(EXPLAINERS[name]) for name in ON_PIXELS},
    }


def _from_pixels(explainer: Explainer, logits: Callable[..., Logits]) -> Method:
    """Pixels as features: methods that change only the image need nothing else."""
    return lambda weights, images, inside, labels: explainer(
        Scorer(lambda pixels: pixels, logits(weights, inside)), images, labels
    )


def _asked(explainer: Callable[..., Array], ask: Callable[..., Any]) -> Method:
    return lambda weights, images, inside, labels: explainer(ask(weights, inside), images, labels)
