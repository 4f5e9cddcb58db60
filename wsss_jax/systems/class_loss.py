"""The classification loss of every system: from logits to one number, the long tail considered."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from wsss_jax import losses
from wsss_jax.errors import UserError
from wsss_jax.losses import long_tail
from wsss_jax.types import Batch

LOSSES: Mapping[str, Callable[[Array, Array], Array]] = MappingProxyType(
    {
        "bce": losses.cross_entropies,
        "focal": long_tail.focal,
        "asymmetric": long_tail.asymmetric,
    }
)
"""Logits and targets (b,c) to what each class of each image costs (b,c)."""


@dataclass(frozen=True)
class ClassLoss:
    """The loss of image labels.

    Attributes:
        kind: bce (binary cross-entropy), focal or asymmetric.
        balance: effective weighs classes by their effective number of images; logit adds the logit
            of a class's share of the images while training; none does neither.
        images: number of training photographs; filled in by training, for balance.
        shown: how many of them show each class; filled in likewise.
    """

    kind: Literal["bce", "focal", "asymmetric"] = "bce"
    balance: Literal["none", "effective", "logit"] = "none"
    images: int = 0
    shown: tuple[int, ...] = ()

    def counted(self, labels: Bool[np.ndarray, "n c"]) -> "ClassLoss":
        """The same with these labels counted; as it is where no balance is asked for."""
        if self.balance == "none":
            return self
        return replace(self, images=len(labels), shown=tuple(labels.sum(axis=0).tolist()))

    def of(
        self, logits: Float[Array, "b c"], targets: Float[Array, "b c"], batch: Batch
    ) -> Float[Array, ""]:
        """Mean over classes and real images. UserError where a balance lacks its counts."""
        if self.balance != "none" and len(self.shown) != logits.shape[-1]:
            raise UserError(
                f"balance {self.balance!r} has counts of {len(self.shown)} classes for "
                f"{logits.shape[-1]}; train by stages.train.fit, or give images and shown"
            )
        shown = jnp.asarray(self.shown, jnp.int32)
        if self.balance == "logit":
            logits = logits + long_tail.prior_logits(shown, self.images)[None]
        costs = LOSSES[self.kind](logits, targets)
        if self.balance == "effective":
            costs = costs * long_tail.effective_weights(shown)[None]
        return losses.mean_over(costs.mean(axis=-1), batch.real)
