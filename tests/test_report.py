"""The report's numbers, packing and page: what goes in comes out, and nothing gets out of hand."""

import base64
import io
import json
import re
import zlib
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from wsss_jax.data.classes import ClassList
from wsss_jax.ops.image_counts import cells_of, gathered
from wsss_jax.recipes import summary
from wsss_jax.report import (
    Gain,
    Picture,
    Report,
    Rule,
    StageScore,
    charts,
    figures,
    page,
    write_page,
)
from wsss_jax.stages.evaluate import Result
from wsss_jax.types import Provenance

HOSTILE = """</script><script>alert("x")</script>'"&<!--{{data}}"""
CLASSES = ("background", "cat", HOSTILE)


def unpacked(text, shape):
    steps = np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8)
    return np.cumsum(steps, dtype=np.uint8).reshape(shape)


def stage(name, miou, **more):
    per_class = np.array([0.8, miou, np.nan])
    return StageScore(name, "val", miou, miou - 0.02, miou + 0.02, per_class, **more)


def picture(id="a", *, classes=("cat",), value=1):
    photo = np.full((40, 60, 3), 90, np.uint8)
    truth = np.zeros((40, 60), np.uint8)
    truth[10:30, 20:40] = 1
    truth[0] = 255
    mask = np.zeros((40, 60), np.uint8)
    mask[10:30, 20:30] = value
    scores = np.linspace(0, 1, 10 * 15 * len(classes)).reshape(10, 15, -1).astype(np.float32)
    return Picture(
        id,
        photo,
        classes,
        {"cam": scores, "saliency": scores[..., :1]},
        {"fused": mask, "exact": truth},
        truth,
    )


def report(**more):
    stages = [
        stage("cam", 0.4, group="explain", threshold=0.3),
        stage("grad-cam", 0.5, group="explain"),
        stage(HOSTILE, 0.6, group="fusion", gain=Gain("cam", 0.2, 0.1, 0.3)),
    ]
    curve = (np.linspace(0, 1, 5), np.array([0.1, 0.5, np.nan, 0.3, 0.2]))
    values = {
        "stages": stages,
        "curves": {HOSTILE: curve},
        "settings": {HOSTILE: HOSTILE},
        "notes": [HOSTILE],
    }
    return Report(HOSTILE, CLASSES, **{**values, **more})


def test_fitted_shrinks_and_never_enlarges():
    assert figures.fitted((375, 500), 320) == (240, 320)
    assert figures.fitted((10, 20), 320) == (10, 20)
    assert figures.fitted((1, 4000), 320) == (1, 320)


def test_packing_keeps_every_value():
    values = np.random.default_rng(0).integers(0, 256, (7, 11)).astype(np.uint8)
    assert (unpacked(figures.packed(values), (7, 11)) == values).all()


def test_masks_shrink_without_inventing_values():
    mask = np.zeros((640, 640), np.uint8)
    mask[:, 320:] = 255
    small = unpacked(figures.mask_values(mask), (320, 320))
    assert set(np.unique(small)) == {0, 255} and (small == mask[::2, ::2]).all()


def test_maps_are_eight_bit_and_stacked_by_class():
    scores = np.stack([np.zeros((4, 6)), np.full((4, 6), 1.0005)], -1).astype(np.float32)
    text, size = figures.map_values(scores)
    values = unpacked(text, (2, *size))
    assert size == (4, 6) and (values[0] == 0).all() and (values[1] == 255).all()


def test_photo_is_a_small_jpeg():
    uri = figures.photo_uri(np.full((500, 400, 3), 128, np.uint8))
    head, content = uri.split(",")
    with Image.open(io.BytesIO(base64.b64decode(content))) as photo:
        assert head == "data:image/jpeg;base64" and photo.size == (256, 320)


def test_heat_gets_lighter_with_the_score():
    lightness = figures.heat_ramp().astype(float) @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(lightness) > -0.5).all() and lightness[-1] - lightness[0] > 200


@pytest.mark.parametrize("name", ["VOC", "colour-blind"])
def test_class_colours_differ(name):
    colours = figures.class_colours(81)[name]
    assert colours.shape == (81, 3) and len(np.unique(colours, axis=0)) == 81


def test_image_iou_by_hand():
    truth = np.array([[0, 1, 1, 255]], np.uint8)
    mask = np.array([[0, 1, 255, 2]], np.uint8)
    assert np.allclose(
        figures.image_ious(mask, truth, 4), [1 / 2, 1 / 2, np.nan, np.nan], equal_nan=True
    )


def test_summary_has_ious_of_scored_classes():
    made = page.summary(picture(), report())
    # 200 of 400 object pixels are found, the others and 1,940 more are background.
    assert made["ious"]["fused"] == [round(1940 / 2140, 4), 0.5, None]
    assert made["ious"]["exact"][:2] == [1.0, 1.0] and made["labels"] == [1]
    assert page.summary(picture(), report(scored=(1, 2)))["ious"]["fused"][0] is None


def test_a_picture_without_truth_or_maps_is_fine(tmp_path):
    bare = Picture("bare", np.zeros((8, 8, 3), np.uint8), ())
    assert page.summary(bare, report())["ious"] == {}
    assert write_page(tmp_path / "x.html", Report("t", ("background", "cat")), [bare]).is_file()
    assert write_page(tmp_path / "y.html", Report("t", ("background", "cat")), []).is_file()
    none = replace(bare, maps={"cam": np.zeros((4, 4, 0), np.float32)})
    assert page.record(none)["maps"]["cam"]["count"] == 0


def switched(**more):
    """A picture with two rules, the first of which is a map too, and trust in two systems."""
    plain = picture()
    sure = np.linspace(0, 1, 96, dtype=np.float32).reshape(8, 12, 1)
    rules = {"cam": plain.maps["cam"], "fused": sure}
    trust = {"fused: trust": np.concatenate([sure, 1 - sure], axis=-1)}
    return replace(plain, rules=rules, trust=trust, doubts={"fused: entropy": sure}, **more)


RULES = {"cam": Rule("systems", 0.3), "fused": Rule("learned", 0.5)}


def test_rules_trust_and_doubts_are_shipped_and_maps_only_once():
    made = page.record(switched())
    assert list(made["rules"]) == ["fused"] and list(made["maps"]) == ["cam", "saliency"]
    shares = unpacked(made["trust"]["fused: trust"]["values"], (2, 8, 12)).astype(int)
    assert abs(shares.sum(axis=0) - 255).max() <= 1 and made["trust"]["fused: trust"]["count"] == 2
    doubt = unpacked(made["doubts"]["fused: entropy"]["values"], (8, 12))
    assert doubt[0, 0] == 0 and doubt[-1, -1] == 255
    told = page.summary(switched(), report(rules=RULES, systems=("a", "b")))
    assert told["rules"] == ["cam", "fused"] and told["doubts"] == ["fused: entropy"]


def test_the_page_knows_rules_and_the_colours_of_systems(tmp_path):
    full = report(rules=RULES, systems=("a", HOSTILE))
    html = write_page(tmp_path / "r.html", full, [switched()]).read_text()
    data = re.search(r'<script type="application/json" id="report">(.*?)</script>', html)
    assert data is not None
    read = json.loads(data[1])
    assert read["rules"]["fused"] == {"group": "learned", "threshold": 0.5}
    assert [system["name"] for system in read["systems"]] == ["a", HOSTILE]
    assert read["systems"][0]["colour"] != read["systems"][1]["colour"]


def test_systems_have_colours_of_their_own():
    colours = figures.system_colours(12)
    assert len(np.unique(colours, axis=0)) == 12 and figures.system_colours(0).shape == (0, 3)


def test_steps_keep_the_best_of_each_group():
    assert [s.miou for s in charts.steps(report().stages)] == [0.5, 0.6]
    alone = [stage("a", 0.4), stage("b", 0.3)]
    assert charts.steps(alone) == alone


def test_waterfall_names_steps_up_and_down():
    chart = charts.waterfall([stage("a", 0.4), stage("b", 0.5), stage("c", 0.47)])
    assert "(+10.0)" in chart and "(-3.0)" in chart
    assert chart.count('class="up"') == 1 and chart.count('class="down"') == 1


def test_waterfall_shows_the_whole_of_a_long_name():
    name = "learned combiner, walk over affinity, CRF of hard labels"
    chart = charts.waterfall([stage(name, 0.4)])
    assert "learned combiner, walk over</text>" in chart
    assert ">affinity, CRF of hard labels</text>" in chart
    row = charts.waterfall([stage("x" * 36, 0.4)]).split("x" * 36 + "</text>")[0]
    assert row.endswith('y="20.0" class="tick end">')  # of one line, beside its dot
    assert f"{'y' * 35}…</text>" in charts.waterfall([stage(f"x {'y' * 80}", 0.4)])


def test_waterfall_without_intervals_and_bars_with_unknown_classes():
    plain = StageScore("a", "val", 0.0, None, None, np.full(3, np.nan))
    assert "whisker" not in charts.waterfall([plain])
    assert "nan" not in charts.class_bars([plain], CLASSES) + charts.class_table([plain], CLASSES)


def test_a_threshold_without_class_scores_has_steps_alone(tmp_path):
    free = StageScore("a", "val", 0.5, None, None, np.full(3, np.nan), threshold_source="Otsu's")
    html = write_page(tmp_path / "r.html", report(stages=[free]), [picture()]).read_text()
    assert "<h4>mIoU stage by stage" in html and "<h4>IoU of each class" not in html
    assert "with its 95 % interval" not in html


def test_curves_skip_gaps_and_mark_the_best_point():
    chart = charts.threshold_curves(report().curves)
    assert "nan" not in chart and "best 50.0 % at threshold 0.25" in chart


def test_a_handful_of_curves_is_shown_the_first_the_best_and_the_last():
    at = np.linspace(0, 1, 3)
    tops = [0.1, 0.2, 0.9, np.nan, 0.5, 0.4, 0.3, 0.6, 0.05]
    curves = {f"c{place}": (at, np.array([0.0, top, 0.0])) for place, top in enumerate(tops)}
    assert list(charts.few(curves)) == ["c0", "c2", "c4", "c5", "c7", "c8"]
    assert charts.few({}) == {} and list(charts.few({"a": curves["c0"]})) == ["a"]


def test_the_page_opens_with_its_lead_and_folds_numbers_away(tmp_path):
    shown = replace(picture(), name="Übung 1.JPG", uncertainty=0.25)
    full = report(lead=("Done.", f"Take {HOSTILE}."))
    html = write_page(tmp_path / "r.html", full, [shown]).read_text()
    places = [html.index(part) for part in ("<p>Done.</p>", 'id="gallery"', 'id="results"')]
    assert places == sorted(places) and html.index("<summary>All stages") > places[-1]
    told = page.summary(shown, report())
    assert told["id"] == "Übung 1.JPG" and told["uncertainty"] == 0.25


def test_table_says_where_each_threshold_came_from():
    table = charts.stage_table(
        [stage("a", 0.4), stage("b", 0.5, threshold_source="tuned on truth")]
    )
    assert table.count('class="best"') == 2 and "tuned on truth" in table


def test_hostile_text_stays_text(tmp_path):
    html = write_page(tmp_path / "r.html", report(), [picture(HOSTILE)]).read_text()
    assert "<script>alert" not in html and 'alert("x")\'' not in html
    assert html.count("<script") == html.count("</script>") == 5  # report, picture, three programs
    data = re.search(r'<script type="application/json" id="report">(.*?)</script>', html)
    assert data is not None
    read = json.loads(data[1])
    assert read["classes"][2] == HOSTILE and read["pictures"][0]["id"] == HOSTILE


def test_page_stands_alone(tmp_path):
    html = write_page(tmp_path / "r.html", report(), [picture()]).read_text()
    assert "default-src 'none'" in html and "unsafe" not in html
    assert not re.search(r"https?://|\bsrc\s*=\s*[\"']|@import", html)
    assert not re.search(r"<[^>]*\sstyle=", html), "style attributes break the policy"


def test_every_hash_of_the_policy_belongs_to_a_block(tmp_path):
    html = write_page(tmp_path / "r.html", report(), [picture()]).read_text()
    blocks = re.findall(r"<style>(.*?)</style>|<script>(.*?)</script>", html, re.S)
    assert len(blocks) == 4 == html.count("'sha256-")
    assert all(page._hash(style or script) in html for style, script in blocks)


def test_fill_does_not_fill_values_again():
    assert page.fill("{{a}} {{b}}", {"a": "{{b}}", "b": "2"}) == "{{b}} 2"


def test_a_failing_picture_leaves_the_old_page(tmp_path):
    path = write_page(tmp_path / "r.html", report(), [picture()])
    before = path.read_bytes()
    with pytest.raises(ValueError, match="'a' comes twice"):
        write_page(path, report(), [picture(), picture()])
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: page.summary(picture(classes=("cow",)), report()), "'cow' is none of"),
        (
            lambda: page.summary(picture(value=9), report()),
            "a, mask 'fused': the prediction holds 9",
        ),
        (lambda: Report("t", ("background",), [stage("s", 0.1)]), "3 class scores"),
        (lambda: page.summary(switched(), report(systems=("a", "b"))), "'cam' is none of"),
        (lambda: page.summary(switched(), report(rules=RULES)), "of 2 systems, the report has 0"),
        (lambda: Rule("learned", 1.5), "threshold 1.5"),
    ],
)
def test_disagreement_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("maps", "masks", "message"),
    [
        ({"m": np.zeros((2, 2, 3), np.float32)}, {}, "3 maps for 2 labels"),
        ({"m": np.full((2, 2, 2), 2, np.float32)}, {}, "from 2 to 2, wanted scores in"),
        ({"m": np.full((2, 2, 2), np.nan, np.float32)}, {}, "wanted scores in"),
        ({}, {"m": np.zeros((3, 4), np.uint8)}, "bring it to the photograph's size"),
    ],
)
def test_pictures_are_checked_when_made(maps, masks, message):
    photo = np.zeros((4, 4, 3), np.uint8)
    with pytest.raises(ValueError, match=message):
        Picture("a", photo, ("cat", "dog"), maps, masks)


def test_tables_tell_supervision_and_licence_of_every_row(tmp_path):
    matrices = {"a": [[5, 1], [2, 7]], "b": [[3, 0], [1, 9]]}
    counts = gathered({id: cells_of(np.array([one])) for id, one in matrices.items()}, 2, 0)
    shared = Provenance("v2", "Apache-2.0", "image labels")
    cue = Provenance("saliency", "not stated", "people's masks")
    sources = (shared, cue)
    result = Result("cam", "val", 0.3, 0.5, counts, counts, np.zeros(1), (0, 1), sources=sources)
    bare = replace(result, name="noise", sources=())
    summary.write(tmp_path, summary.against_first([result, bare]), ClassList(("cat",)))
    text = (tmp_path / "results.md").read_text()
    assert "v2 (image labels; licence Apache-2.0), saliency (people's masks; licence not st" in text
    assert text.count("| image labels; people's masks |") == 1 and "| none recorded |" in text
    records = json.loads((tmp_path / "results.json").read_text())["results"]
    assert [len(record["sources"]) for record in records] == [2, 0]
    table = charts.stage_table([stage("cam", 0.5, supervision=result.supervision)])
    assert "<td>image labels; people&#x27;s masks</td>" in table
    assert "Supervision" not in charts.stage_table([stage("cam", 0.5)])
