"""What a system's scores are counted in, read off the scores themselves.

Activations have no unit of their own: most tools divide each map by its maximum, some do not, and
whoever averages, walks or thresholds before writing gets maps that never come near 1. Wherever
several systems are put together, such a system would count for less and leave more background,
whatever it says.
"""

import numpy as np

from wsss_jax.data.stores import Store
from wsss_jax.errors import BadFileError

LOW = 0.5
"""Scores that usually stay below this are in another unit than [0, 1]; others are left alone."""

_SAMPLE = 200


def unit_of(store: Store) -> float:
    """What the store's scores are to be divided by so that they reach 1: itself 1 for most.

    The 95th percentile of the images' highest scores where that is below ``LOW``: then not even
    what the system is surest of would be foreground at one half. Up to 200 images are read, evenly
    spread; damaged ones are passed over here and named where they are used. Probabilities and
    logits have a unit, and keep it.
    """
    if store.kind != "activation":
        return 1.0
    ids = store.ids()
    highest = []
    for id in ids[:: max(-(-len(ids) // _SAMPLE), 1)]:
        try:
            scores = store.get_scores(id).scores
        except BadFileError:
            continue
        if scores.size:
            highest.append(float(scores.max()))
    usual = float(np.percentile(highest, 95)) if highest else 1.0
    return usual if 0 < usual < LOW else 1.0
