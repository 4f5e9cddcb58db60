"""The page of stores: rules at their own thresholds, trust and doubt where a combiner left them."""

import json
import re

import numpy as np
import pytest

from wsss_jax.data import stores
from wsss_jax.recipes import report as reporting
from wsss_jax.stages.combine import Fusion, combine
from wsss_jax.stages.evaluate import Scoring
from wsss_jax.study import fusion_world, world
from wsss_jax.types import ScoreMaps


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return world.write(fusion_world.make(2, seed=3, size=24), tmp_path_factory.mktemp("world"))


def learned(inputs, folder):
    """What a combiner writes: probabilities, trust and uncertainty; one image has no trust."""
    classes = inputs.source.classes.names
    systems = tuple(store.folder.name for store in inputs.systems[:2])

    def made(suffix, names):
        path = folder / f"combined{suffix}"
        return stores.create(path, holds="scores", classes=names, kind="probability", made_by={})

    fused = made("", classes)
    trust, doubt = made("_trust", systems), made("_uncertainty", ("entropy", "disagreement"))
    for id in inputs.source.ids:
        labels = np.flatnonzero(inputs.source.labels(id)).astype(np.int32)
        put(fused, id, np.full((6, 6, len(labels)), 0.25), labels)
        put(doubt, id, np.full((6, 6, 2), 0.25), np.arange(2, dtype=np.int32))
        if id == inputs.source.ids[0]:
            put(trust, id, np.full((6, 6, 2), (0.75, 0.25)), np.arange(2, dtype=np.int32))
    return fused


def put(store, id, scores, labels):
    peak = scores.max(axis=(0, 1))
    found = ScoreMaps(scores.astype(np.float32), labels, (24, 24), peak, "probability")
    store.put_scores(id, found)


def data_of(page):
    found = re.search(r'id="report">(.*?)</script>', page.read_text())
    assert found is not None
    return json.loads(found[1])


def test_a_learned_store_brings_its_trust_and_doubt(inputs, tmp_path):
    fused = learned(inputs, tmp_path)
    vote = combine(
        inputs.systems,
        inputs.source,
        tmp_path / "vote",
        Fusion("majority_vote", renormalise=False),
        ids=inputs.source.ids,
    )
    shown = [inputs.systems[0], vote, fused]
    page = reporting.page_of_stores(tmp_path / "page.html", shown, inputs.source, Scoring(), 2)
    # Beliefs have a half by their meaning; the scores of the others part somewhere.
    assert page.read_text().count("<td>by Otsu&#x27;s rule</td>") == 2
    data = data_of(page)
    # Activations are cut at the setting; votes and probabilities at a half by their meaning.
    thresholds = {name: rule["threshold"] for name, rule in data["rules"].items()}
    assert thresholds == {"part": 0.3, "vote": 0.5, "combined": 0.5}
    assert [system["name"] for system in data["systems"]] == ["part", "overctx"]
    first, second = data["pictures"]
    assert first["trust"] == ["combined: trust"] and second["trust"] == []
    assert first["doubts"] == ["combined: entropy", "combined: disagreement ×2"]


def test_without_background_no_threshold_is_offered(inputs, tmp_path):
    scoring = Scoring(background=False)
    shown = [inputs.systems[0]]
    page = reporting.page_of_stores(tmp_path / "page.html", shown, inputs.source, scoring, 1)
    assert data_of(page)["rules"] == {"part": {"group": "stores", "threshold": None}}


def test_a_store_of_other_classes_is_named(inputs, tmp_path):
    with pytest.raises(ValueError, match="saliency as class 1, the data set has boat"):
        reporting.page_of_stores(
            tmp_path / "page.html", [inputs.saliency], inputs.source, Scoring(), 1
        )
