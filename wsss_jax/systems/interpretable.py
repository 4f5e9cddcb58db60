"""The interpretable gradient loss: a classifier whose input gradient has to be near the guided one.

Source: Torres Figueroa, Zhang, Sicre, Avrithis & Ayache 2024 (A Learning Paradigm for Interpretable
Gradients), algorithm 1. The term itself is ``terms.gradient_error``; it takes any logits.
"""

from dataclasses import dataclass, field

from jaxtyping import Array, PRNGKeyArray

from wsss_jax import losses
from wsss_jax.errors import UserError
from wsss_jax.systems import classifier, terms
from wsss_jax.systems.classifier import Classifier
from wsss_jax.systems.entry import Explained
from wsss_jax.train.optimizers import held
from wsss_jax.train.state import TrainState
from wsss_jax.types import Batch, System, Variables


@dataclass(frozen=True)
class InterpretableGradient:
    """A classifier with the interpretable gradient loss; its network needs ReLU or ReLU6.

    Attributes:
        classifier: the network and its optimizer.
        weight: λ, of the error between the input gradients. The algorithm leaves it open; the
            default is ours and not tuned.
    """

    classifier: Classifier = field(default_factory=Classifier)
    weight: float = 0.01

    def __post_init__(self) -> None:
        if self.weight < 0:
            raise UserError(f"the weight of the gradient loss is {self.weight}, wanted 0 or more")


def make(settings: InterpretableGradient, *, classes: int, steps: int) -> System:
    """The learning problem of ``steps`` updates over ``classes`` classes.

    A step raises UserError where the network has no rectifier.
    """
    own = settings.classifier
    network, update = classifier.structure(own, classes), classifier.update_of(own, steps)

    def init(key: PRNGKeyArray) -> TrainState:
        return classifier.start(own, classes, steps, key)

    def step(
        state: TrainState, batch: Batch, key: PRNGKeyArray
    ) -> tuple[TrainState, dict[str, Array]]:
        targets = losses.smooth(batch.labels, own.label_smoothing)

        def loss_of(params: Variables) -> tuple[Array, dict[str, Array]]:
            module = network.bind(held(params, own.optim.freeze), state.stats)
            loss, error = terms.gradient_error(
                lambda images: module(images, batch.inside, rngs=key),
                lambda logits: own.loss.of(logits, targets, batch),
                batch,
            )
            return loss + settings.weight * error, {"loss_class": loss, "gradient_error": error}

        return state.descended(update, loss_of)

    return System(init, step)


def template(settings: InterpretableGradient, classes: int) -> TrainState:
    """The shape of the state that ``make(...).init`` gives."""
    return classifier.template(settings.classifier, classes)


def explained(settings: InterpretableGradient) -> Explained:
    """The network that class maps are asked of."""
    return classifier.explained(settings.classifier)
