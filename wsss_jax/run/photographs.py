"""Photographs in batches through a network, by the one loop over many images (``images``)."""

from collections.abc import Callable

from wsss_jax.batches.batches import Group, inference_groups
from wsss_jax.datasets.table import Source
from wsss_jax.run.images import Tally, over_groups


def over_photographs(
    title: str,
    source: Source,
    ids: tuple[str, ...],
    function: Callable[[Group], int],
    *,
    scales: tuple[float, ...],
    batch_size: int,
) -> Tally:
    """``over_groups`` on the photographs of ``ids``, in batches at each of these scales."""
    skipped: dict[str, str] = {}
    groups = inference_groups(
        source, ids, scales=scales, batch_size=batch_size, skip=skipped.__setitem__
    )
    return over_groups(title, groups, len(ids), function, skipped)
