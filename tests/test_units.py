"""In which unit a store's scores are."""

import numpy as np
import pytest

from wsss_jax.data import stores
from wsss_jax.data.units import unit_of
from wsss_jax.types import ScoreMaps


def _store(folder, highest, kind="activation"):
    """One image for each of the highest scores; None is an image without a class."""
    made = stores.create(folder, holds="scores", classes=("a",), kind=kind, made_by={})
    for number, score in enumerate(highest):
        count = 0 if score is None else 1
        maps = np.full((2, 3, count), 0 if score is None else score / 2, np.float32)
        maps[0, 0] = 0 if score is None else score
        found = ScoreMaps(maps, np.zeros(count, np.int32), (8, 12), np.ones(count), kind)
        made.put_scores(f"i{number}", found)
    return made


@pytest.mark.parametrize(
    ("highest", "unit"),
    [
        ([0.2] * 30, 0.2),
        ([0.2] * 29 + [1.0], 0.2),  # one image in thirty does not make a unit
        ([0.05] * 20 + [0.4] * 10, 0.4),
        ([0.05] * 20 + [0.6] * 10, 1.0),  # sure of some images, unsure of others: it counts to 1
        ([1.0] * 3, 1.0),
        ([0.2, None, 0.2], 0.2),
        ([0.0, 0.0], 1.0),
        ([None], 1.0),
        ([], 1.0),
    ],
)
def test_scores_that_stay_low_are_in_a_unit_of_their_own(tmp_path, highest, unit):
    assert unit_of(_store(tmp_path / "s", highest)) == pytest.approx(unit, rel=1e-3)


@pytest.mark.parametrize("kind", ["probability", "logit"])
def test_probabilities_and_logits_have_a_unit(tmp_path, kind):
    assert unit_of(_store(tmp_path / "s", [0.2] * 3, kind)) == 1


def test_a_damaged_record_is_passed_over(tmp_path):
    made = _store(tmp_path / "s", [0.2, 0.2, 0.2])
    made.path("i1").write_bytes(b"no array")
    assert unit_of(made) == pytest.approx(0.2, rel=1e-3)
