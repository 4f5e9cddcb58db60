"""Flipped bits of a mask and of a record of score maps: each is refused or changes nothing.

python benchmarks/faults_flips.py --count 1500
"""

import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tyro

from wsss_jax.data import stores
from wsss_jax.errors import BadFileError
from wsss_jax.types import ScoreMaps


def flips(count: int, rng: np.random.Generator) -> Counter[str]:
    """How many flipped bits of small records were refused, changed nothing, or passed."""
    found: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as place:
        masks = stores.create(Path(place, "m"), holds="masks", classes=("a", "b"), made_by={})
        maps = stores.create(Path(place, "s"), holds="scores", classes=("a", "b"), made_by={})
        masks.put_mask("x", rng.integers(0, 3, (60, 80)).astype(np.uint8))
        scores = rng.random((15, 20, 2)).astype(np.float32)
        whole = ScoreMaps(scores, np.arange(2, dtype=np.int32), (60, 80), scores.max((0, 1)))
        maps.put_scores("x", whole)
        for store in (masks, maps):
            path, content = store.path("x"), store.path("x").read_bytes()
            before = read(store)
            for _ in range(count):
                changed = bytearray(content)
                bit = int(rng.integers(8 * len(content)))
                changed[bit // 8] ^= 1 << bit % 8
                path.write_bytes(changed)
                try:
                    same = all(map(np.array_equal, read(store), before))
                    outcome = "changed nothing" if same else "PASSED"
                except BadFileError:
                    outcome = "refused"
                found[f"{store.holds}: {outcome}"] += 1
    return found


def read(store: stores.Store) -> Sequence[np.ndarray]:
    """The record x as arrays."""
    if store.holds == "masks":
        return (store.get_mask("x"),)
    maps = store.get_scores("x")
    return maps.scores, maps.classes, maps.peak, np.asarray(maps.size)


def main(count: int = 1500, seed: int = 0) -> None:
    """Flip bits one at a time.

    Args:
        count: bits of each file.
        seed: of the bits.
    """
    found = flips(count, np.random.default_rng(seed))
    print(dict(sorted(found.items())))
    raise SystemExit(any("PASSED" in outcome for outcome in found))


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
