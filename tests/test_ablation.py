"""Ablations: what is off is off, who learns what, right numbers, and going on where it stopped."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from wsss_jax.combiner import learn_combiner, network
from wsss_jax.combiner.combiner_run import Combining
from wsss_jax.combiner.network import CombinerShape
from wsss_jax.data import views
from wsss_jax.stages.evaluate import Scoring, evaluate
from wsss_jax.study import ablation, ablation_tables, closed_forms, fusion_world, world
from wsss_jax.study.ablation import Learnt, Study, Table, Variant
from wsss_jax.study.closed_forms import Closed
from wsss_jax.types import Evidence

NAMES = ("part", "overctx", "miscal")
SETTINGS = Combining(cells=24)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    made = world.write(fusion_world.make(10, seed=5, size=24), folder)
    ids = [id for id in made.source.ids if made.source.labels(id).sum() == 1]
    stores = {store.folder.name: store for store in made.systems}
    systems = ablation_tables.with_distorted(stores, "part", folder / "changed", ids=ids)
    cues = {"saliency": made.saliency, "edges": made.edges}
    judged = replace(made.source, ids=tuple(ids[1:]))
    return Study(made.source, (ids[0],), judged, systems, cues)


def closed(name, systems, *, steps=0, saliency=False):
    return Variant(name, Closed(systems, steps, saliency, 0.4, 24))


def rows_of(title, **more):
    tables = {t.title: t for t in ablation_tables.standard(SETTINGS, NAMES, **more)}
    return {row.name: row.way for row in tables[title].rows}


def test_a_group_that_is_out_is_seen_by_no_network():
    rows = rows_of("Input groups: one out", cues=("saliency", "edges"))
    whole = rows["all"].settings.protocol.shape.groups
    assert "features" not in whole and "edge" in whole  # there are no features to see
    for group in whole[1:]:
        seen = rows[f"without {group}"].settings.protocol.shape.groups
        assert set(whole) - set(seen) == {group}
    assert rows["no saliency for teachers either"].cues == ("edges",)
    assert "no probe for teachers either" not in rows
    seeing = rows_of("Input groups: one out")
    blind = seeing["no probe for teachers either"].settings.protocol
    assert blind.probes == 0 and "probe" in seeing["all"].settings.protocol.shape.groups
    assert rows_of("Combiner and closed forms")["closed: … and the probe"].probes == 2
    walks = rows_of("With and without random walk", cues=("saliency", "edges"))
    assert walks["walks are cut by edges"].settings.protocol.shape.cut_walks
    assert "walks are cut by edges" not in rows_of("With and without random walk", cues=())
    added = rows_of("Input groups: one added to own", cues=("saliency", "edges"))
    assert added["own and image"].settings.protocol.shape.groups == ("own", "image")
    assert added["own alone"].settings.protocol.shape.groups == ("own",)


def looked_at(groups):
    """The fields of the evidence that the network's program reads at all."""
    shape = CombinerShape(("own", *groups), width=4, walk_steps=2)
    module = network.build(shape, features=3, key=jax.random.key(0))
    grid, flags = np.zeros((1, 8, 8), np.float32), np.ones((1, 2), bool)
    evidence = Evidence(
        images=np.zeros((1, 8, 8, 3), np.float32),
        scores=np.zeros((1, 2, 8, 8, 2), np.float32),
        available=np.ones((1, 2, 2), bool),
        peak=np.zeros((1, 2, 2), np.float32),
        present=flags,
        saliency=grid,
        edges=grid,
        probe=np.zeros((1, 8, 8, 2), np.float32),
        cues=np.ones((1, 3), bool),
        features=np.zeros((1, 8, 8, 3), np.float32),
        inside=grid == 0,
        real=np.ones(1, bool),
    )
    program = jax.make_jaxpr(lambda e: module(e, e.available).logits)(evidence).jaxpr
    read = {id(variable) for step in program.eqns for variable in step.invars}
    fields = [path[0].name for path, _ in jax.tree_util.tree_leaves_with_path(evidence)]
    return {name for name, one in zip(fields, program.invars, strict=True) if id(one) in read}


@pytest.mark.parametrize(
    ("groups", "more"),
    [
        (("other", "consensus"), set()),
        (("context",), {"images"}),  # it walks along colours
        (("context", "edge"), {"images", "edges", "cues"}),
        (("saliency",), {"saliency", "images", "cues"}),
        (("edge",), {"edges", "cues"}),
        (("image",), {"images"}),
        (("features",), {"features"}),
        (("global",), {"peak"}),
        (("probe",), {"probe", "images", "cues"}),
    ],
)
def test_a_network_reads_what_its_groups_say_and_nothing_else(groups, more):
    alone = {"scores", "available", "present", "inside"}
    assert looked_at(()) == alone
    assert looked_at(groups) == alone | more


def test_systems_are_left_out_of_learning_or_of_the_test_alone():
    out, missing = rows_of("Systems: one out"), rows_of("Systems missing at test time")
    assert out["learned without part"].systems == ("overctx", "miscal")
    assert missing["part missing"].systems == NAMES
    assert missing["part missing"].tested == ("overctx", "miscal")
    numbers = rows_of("Number of systems")
    assert [len(numbers[name].systems) for name in ("1 system", "2 systems", "all")] == [1, 2, 3]
    lengths = rows_of("Length of distillation")
    epochs = [way.settings.distil_epochs / SETTINGS.distil_epochs for way in lengths.values()]
    assert epochs == [1, 2, 4, 4]
    assert [way.settings.patience for way in lengths.values()] == [0, 0, 0, 2]
    noise = rows_of("Noise and other units")
    assert noise["noise added at test"].systems == NAMES
    assert noise["noise added at test"].tested == (*NAMES, "part noise")
    assert noise["part power 3 at test"].tested == ("part power 3", *NAMES[1:])


def test_every_variant_has_a_folder_of_its_own_and_names_say_one_thing():
    tables = ablation_tables.standard(SETTINGS, NAMES)
    named = {row.name: row.way for table in tables for row in table.rows}
    for table in tables:
        assert all(row.way == named[row.name] for row in table.rows)
    ablation._first_learning(tables)
    double = Table("t", (closed("a b", NAMES), closed("A-b", NAMES[:2])))
    with pytest.raises(ValueError, match="give each a name of its own"):
        ablation._first_learning([double])
    with pytest.raises(ValueError, match="at least two"):
        ablation_tables.standard(SETTINGS, NAMES[:1])


def test_part_keeps_the_rows_that_were_asked_for():
    tables = ablation.part(
        ablation_tables.standard(SETTINGS, NAMES), ("all", "without image", "one student")
    )
    assert [len(table.rows) for table in tables] == [2, 2]
    alone = ablation.part(ablation_tables.standard(SETTINGS, NAMES), ("all",))
    assert [[row.name for row in table.rows] for table in alone] == [["all"]]
    with pytest.raises(ValueError, match="did you mean 'without image'"):
        ablation.part(tables, ("without imag",))


def test_changes_do_what_their_names_say(study):
    old = study.systems["part"].get_scores(study.judged.ids[0])
    scaled, cubed, noise = (
        study.systems[f"part {name}"].get_scores(study.judged.ids[0])
        for name in ("times 0.2", "power 3", "noise")
    )
    np.testing.assert_allclose(scaled.scores, 0.2 * old.scores, atol=1e-3)
    np.testing.assert_allclose(cubed.scores, old.scores**3, atol=1e-3)
    assert abs(np.corrcoef(noise.scores.ravel(), old.scores.ravel())[0, 1]) < 0.15
    assert list(noise.classes) == list(old.classes) and noise.size == old.size


def test_numbers_are_those_of_the_stores_and_noise_hurts_a_mean(study, tmp_path):
    one = closed("overctx alone", ("overctx",))
    table = Table(
        "Noise",
        (one, closed("with noise", ("overctx", "part noise")), closed("twice", ("overctx",) * 2)),
    )
    found = ablation.run([table], study, tmp_path)
    # The maximum of a system of the world is 1 already, so its closed form is the system itself.
    alone = evaluate(study.systems["overctx"], study.judged, Scoring(threshold=0.4), split="w")
    same = found["overctx alone"].result
    assert same.miou() == pytest.approx(alone.miou(), abs=2e-3) and same.ids == alone.ids
    gaps = dict((row.name, gap) for row, gap in ablation._compared(table, found))
    assert gaps["overctx alone"] is None and gaps["twice"].estimate == 0
    assert gaps["with noise"].estimate < -0.02
    text = (tmp_path / "ablation.md").read_text()
    lines = {line.split(" | ")[0].strip("| "): line for line in text.splitlines() if "|" in line}
    assert f"| {100 * same.miou():.1f} |" in lines["overctx alone"]
    assert f"{100 * gaps['with noise'].estimate:+.1f}" in lines["with noise"]
    assert (tmp_path / "ablation.png").read_bytes()[:4] == b"\x89PNG"


def test_it_goes_on_where_it_stopped_and_refuses_other_settings(study, tmp_path):
    table = Table("t", (closed("a", NAMES), closed("b", NAMES[:1])))
    ablation.run([table], study, tmp_path)
    before = (tmp_path / "ablation.md").read_bytes()
    judged = tmp_path / "variants" / "b" / "seed_0" / "judged.npz"
    stamp = (tmp_path / "variants" / "a" / "seed_0" / "judged.npz").stat().st_mtime_ns
    judged.unlink()
    ablation.run([table], study, tmp_path)
    assert judged.is_file() and (tmp_path / "ablation.md").read_bytes() == before
    assert (tmp_path / "variants" / "a" / "seed_0" / "judged.npz").stat().st_mtime_ns == stamp
    other = Table("t", (closed("a", NAMES[1:]), closed("b", NAMES[:1])))
    with pytest.raises(ValueError, match=r"variant\.way\.systems"):
        ablation.run([other], study, tmp_path)
    with pytest.raises(ValueError, match="unknown table"):
        ablation.run([table], study, tmp_path, chosen=("u",))


def test_closed_forms_have_records_of_images_without_labels(study, tmp_path):
    blank = replace(study, source=views.photographs(study.source))
    id = study.judged.ids[0]
    made = closed_forms.combine(
        Closed(NAMES, 0, False, 0.5, 24),
        blank.inputs(NAMES, (), 24),
        tmp_path,
        ids=(id,),
        teaching=(),
    )[0]
    assert made.ids() == (id,) and not len(made.get_scores(id).classes)


def test_what_learns_the_same_learns_once_for_each_seed(study, tmp_path, monkeypatch):
    learnt, fused = [], []

    def learn(inputs, folder, settings, *, ids):
        learnt.append((folder.relative_to(tmp_path).as_posix(), settings.seed, tuple(ids)))
        return folder

    def fuse(run, inputs, folder, *, ids):
        fused.append([store.folder.name for store in inputs.systems])
        names = tuple(store.folder.name for store in inputs.systems)
        store = closed_forms.combine(
            Closed(names, 0, False, 0.5, 24),
            study.inputs(names, (), 24),
            folder,
            ids=ids,
            teaching=(),
        )[0]
        return store, store, store

    monkeypatch.setattr(learn_combiner, "learn", learn)
    monkeypatch.setattr(learn_combiner, "fuse", fuse)
    whole = Learnt(SETTINGS, NAMES)
    rows = (Variant("all", whole), Variant("fewer", replace(whole, tested=NAMES[:1])))
    found = ablation.run([Table("t", rows)], replace(study, seeds=(0, 1)), tmp_path)
    homes = [home for home, _, _ in learnt]
    assert homes == 2 * ["variants/all/seed_0/run", "variants/all/seed_1/run"]
    assert [seed for _, seed, _ in learnt] == [0, 1, 0, 1] and learnt[0][2] == study.teaching
    assert fused == 2 * [list(NAMES)] + 2 * [["part"]]
    assert len(found["all"].seeds) == 2
    assert "| variant | mIoU | 95 % | seeds |" in (tmp_path / "ablation.md").read_text()
