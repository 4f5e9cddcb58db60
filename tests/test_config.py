from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from wsss_jax import config
from wsss_jax.errors import UserError
from wsss_jax.run.training import Training
from wsss_jax.stages.explain import Explanation
from wsss_jax.stages.predict import Predicting


@dataclass(frozen=True)
class Inner:
    rate: float = 0.1
    scales: tuple[float, ...] = (0.5, 1.0)
    box: tuple[int, int] = (3, 4)


@dataclass(frozen=True)
class Outer:
    inner: Inner = field(default_factory=Inner)
    weights: Path | None = None
    members: Mapping[str, Inner] = field(default_factory=dict)


def test_lookup_names_the_nearest_entry():
    with pytest.raises(ValueError, match="did you mean 'resnet50'"):
        config.lookup({"resnet50": 1, "vit": 2}, "resnet5O", "backbone")


def test_settings_survive_a_round_trip_through_json():
    settings = Outer(Inner(0.5, (1.0,), (1, 2)), Path("a/b"), {"x": Inner()})
    assert config.from_json(Outer, config.as_json(settings)) == settings
    assert config.from_json(Outer, config.as_json(Outer())) == Outer()


def test_an_unknown_setting_is_refused():
    with pytest.raises(ValueError, match="did you mean 'inner'"):
        config.from_json(Outer, {"iner": {}})


def test_differences_name_every_changed_setting():
    old, new = config.as_json(Outer()), config.as_json(Outer(Inner(rate=0.2), Path("w")))
    assert config.differences(old, new) == ["inner.rate: 0.1 -> 0.2", "weights: None -> 'w'"]
    assert config.fingerprint(old) != config.fingerprint(new)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Training(None, epochs=0), "epochs is 0; wanted 1 or more"),
        (lambda: Training(None, epochs=-1), "epochs is -1; wanted 1 or more"),
        (lambda: Training(None, batch_size=0), "batch_size is 0; wanted 1 or more"),
        (lambda: Training(None, seed=-1), "seed is -1; wanted 0 or more"),
        (lambda: Explanation(scales=(1.0, float("nan"))), "scales is nan"),
        (lambda: Explanation(scales=()), "scales are none"),
        (lambda: Predicting(batch_size=-3), "batch_size is -3"),
    ],
)
def test_settings_with_which_nothing_would_be_done_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()
