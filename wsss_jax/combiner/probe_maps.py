"""A linear probe: what the cells of a class look like over the whole data set.

A linear classifier of single cells, from frozen features, colours and saliency to background and
all classes (Alain & Bengio 2016 call one that looks into a network a probe). Systems err image by
image; what all images of a class have in common is mostly the class. ``combiner.linear_probe``
learns it from maps, without a mask; here it is read, written and asked.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Float

from wsss_jax.data.files import write_atomic
from wsss_jax.data.stores import read_npz
from wsss_jax.errors import BadFileError


@dataclass(frozen=True)
class Probe:
    """Logits of a cell are ``offset + seen @ kernel``, column 0 background.

    classes: names, in the order of the columns after the first. kernel: (d, 1 + c), of what
    ``seen`` gives. offset: (1 + c,). salient: whether it sees saliency.
    """

    classes: tuple[str, ...]
    kernel: Float[np.ndarray, "d n"]
    offset: Float[np.ndarray, " n"]
    salient: bool

    @cached_property
    def _column(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.classes, start=1)}

    def channels(self) -> int:
        """How many frozen channels it asks for."""
        return len(self.kernel) - 9 - 2 * self.salient

    def maps(
        self,
        features: Float[np.ndarray, "h w f"],
        image: Float[np.ndarray, "h w 3"],
        saliency: Float[np.ndarray, "h w"] | None,
        names: Sequence[str],
    ) -> Float[np.ndarray, "h w k"] | None:
        """Probability of the named classes, what they leave of 1 being background.

        The image shows these classes and no other. None where a class is not known.
        """
        if any(name not in self._column for name in names):
            return None
        asked = [0, *(self._column[name] for name in names)]
        channels = seen(features, image, saliency, salient=self.salient)
        logits = channels @ self.kernel[:, asked] + self.offset[asked]
        raised = np.exp(logits - logits.max(axis=1, keepdims=True))
        shares = raised / raised.sum(axis=1, keepdims=True)
        return shares[:, 1:].reshape(*image.shape[:2], len(names)).astype(np.float32)

    def save(self, path: Path) -> None:
        """Write it, whole or not at all."""
        buffer = io.BytesIO()
        names = np.frombuffer("\n".join(self.classes).encode(), np.uint8)
        np.savez(
            buffer,
            classes=names,
            kernel=self.kernel,
            offset=self.offset,
            salient=np.array(self.salient),
        )
        write_atomic(path, buffer.getvalue())


def load(path: Path) -> Probe:
    """A probe that ``Probe.save`` wrote. BadFileError for a file that is none."""
    fields = {"classes": "u", "kernel": "f", "offset": "f", "salient": "b"}
    arrays = read_npz(path, fields)
    kernel, offset = arrays["kernel"], arrays["offset"]
    classes = tuple(arrays["classes"].astype(np.uint8).tobytes().decode().split("\n"))
    wanted = (len(classes) + 1,)
    if kernel.ndim != 2 or kernel.shape[1:] != wanted or offset.shape != wanted:
        raise BadFileError(
            f"{path}: kernel {kernel.shape} and offset {offset.shape} for {len(classes)} classes; "
            "wanted a column for each and one for background; learn the combiner again"
        )
    return Probe(classes, kernel, offset, bool(arrays["salient"]))


def averaged(
    probabilities: Float[np.ndarray, "h w n"], said: Float[np.ndarray, "h w k"] | None
) -> Float[np.ndarray, "h w n"]:
    """The geometric mean of probabilities, background first, and of what a probe says."""
    if said is None:
        return probabilities
    rest = np.maximum(1 - said.sum(axis=-1, keepdims=True), 0)
    both = np.sqrt(probabilities * np.concatenate([rest, said], axis=-1))
    return both / np.maximum(both.sum(axis=-1, keepdims=True), 1e-12)


def seen(
    features: Float[np.ndarray, "h w f"],
    image: Float[np.ndarray, "h w 3"],
    saliency: Float[np.ndarray, "h w"] | None,
    *,
    salient: bool,
) -> Float[np.ndarray, "n d"]:
    """What it sees of each cell: features; colours, their squares and products; saliency, squared.

    An image without saliency has 1/2 everywhere, where the probe has learned to see it.
    """
    colours = 2 * image.reshape(-1, 3) - 1
    following = np.roll(colours, -1, axis=1)
    parts = [
        features.reshape(len(colours), features.shape[-1]),
        colours,
        colours * colours,
        colours * following,
    ]
    if salient:
        level = np.full(len(colours), 0.5) if saliency is None else saliency.ravel()
        parts.append(np.stack([level, level * level], axis=1))
    return np.concatenate(parts, axis=1, dtype=np.float32)
