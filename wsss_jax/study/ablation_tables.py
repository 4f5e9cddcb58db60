"""What is asked of the combiner: input groups, systems, noise, views, walks and few labels.

``standard`` gives the tables for any systems, ``part`` some rows of them. ``with_distorted`` adds
the systems of noise, of another scale and of another contrast that some rows name.
``study.ablation`` makes them.
"""

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import numpy as np

from wsss_jax.combiner import label_free
from wsss_jax.combiner.combiner_run import Combining
from wsss_jax.combiner.network import GROUPS
from wsss_jax.data import stores
from wsss_jax.data.stores import Store
from wsss_jax.errors import UserError
from wsss_jax.study.ablation import CUES, Learnt, Table, Variant
from wsss_jax.study.closed_forms import Closed
from wsss_jax.types import ScoreMaps

SHOTS = (1, 5, 20, 50)
"""How many images are labelled in the table of few labels."""

Change = Callable[[ScoreMaps, np.random.Generator], ScoreMaps]


def _noise(maps: ScoreMaps, random: np.random.Generator) -> ScoreMaps:
    """Each cell and peak drawn by itself; which classes and which grid stay as they are."""
    scores = random.random(maps.scores.shape, np.float32)
    return replace(maps, scores=scores, peak=random.random(maps.peak.shape, np.float32))


def _scaled(maps: ScoreMaps, random: np.random.Generator) -> ScoreMaps:
    return replace(maps, scores=0.2 * maps.scores, peak=0.2 * maps.peak)


def _cubed(maps: ScoreMaps, random: np.random.Generator) -> ScoreMaps:
    return replace(maps, scores=maps.scores**3, peak=maps.peak**3)


CHANGES: Mapping[str, Change] = MappingProxyType(
    {"noise": _noise, "times 0.2": _scaled, "power 3": _cubed}
)
"""What may become of a system, by name."""


def with_distorted(
    systems: Mapping[str, Store], victim: str, folder: Path, *, ids: Sequence[str]
) -> dict[str, Store]:
    """The systems and, as ``<victim> <change>``, the victim after every one of CHANGES.

    The changed stores are written into ``folder`` once; an image the victim lacks is left out.
    """
    found = dict(systems)
    old = systems[victim]
    for name, change in CHANGES.items():
        target = stores.create(
            folder / f"{victim}_{name}".replace(" ", "_"),
            holds="scores",
            classes=old.classes,
            kind=old.kind,
            made_by={"stage": "ablation", "change": name},
            parents=(victim,),
        )
        for id in target.missing(ids):
            if old.path(id).is_file():
                random = np.random.default_rng(zlib.crc32(id.encode()))
                target.put_scores(id, change(old.get_scores(id), random))
        found[changed(victim, name)] = target
    return found


def changed(victim: str, change: str) -> str:
    """What the changed system is called."""
    return f"{victim} {change}"


def standard(
    settings: Combining,
    systems: Sequence[str],
    *,
    cues: Sequence[str] = CUES,
    victim: str | None = None,
    shots: Sequence[int] = SHOTS,
) -> tuple[Table, ...]:
    """All tables for these systems, of which there must be two.

    victim: the system that is distorted, the first by default. cues: those there are; groups of
    inputs that need another cue are left out. shots: numbers of labelled images.
    """
    if len(systems) < 2:
        raise UserError(f"{len(systems)} system to take apart; wanted at least two")
    plan = _Plan(settings, tuple(systems), tuple(cues))
    return (
        plan.forms(),
        plan.groups_out(),
        plan.groups_in(),
        plan.systems_out(),
        plan.systems_in(),
        plan.numbers(),
        plan.missing(),
        plan.distorted(victim or systems[0]),
        plan.views(),
        plan.walks(),
        plan.thresholds(),
        plan.lengths(),
        plan.labels(shots),
    )


class _Plan:
    """The variants of one set of systems and settings."""

    def __init__(self, settings: Combining, systems: tuple[str, ...], cues: tuple[str, ...]):
        known = tuple(name for name in CUES if name in cues)
        lacking = {group for name in CUES if name not in known for group in _NEEDS[name]}
        groups = tuple(g for g in settings.protocol.shape.groups if g not in lacking)
        self.settings = _seeing(settings, groups)
        self.systems, self.cues, self.groups = systems, known, groups
        self.all = Variant("all", self.way())

    def way(
        self, settings: Combining | None = None, systems: Sequence[str] | None = None
    ) -> Learnt:
        """The full combiner, or one with other settings or other systems."""
        chosen = self.systems if systems is None else tuple(systems)
        return Learnt(settings or self.settings, chosen, cues=self.cues)

    def closed(
        self,
        systems: Sequence[str],
        *,
        steps: int | None = None,
        saliency: bool | None = None,
        probes: int = 0,
    ) -> Closed:
        """What teaches students, of these systems; without a saliency cue, saliency is nothing.

        Without its probe unless that is asked for, and then without frozen features anywhere.
        """
        protocol = label_free.on_grid(self.settings.protocol, self.settings.cells)
        return Closed(
            tuple(systems),
            protocol.walk_steps if steps is None else steps,
            (protocol.saliency if saliency is None else saliency) and "saliency" in self.cues,
            protocol.threshold,
            self.settings.cells,
            probes=probes,
            along=protocol.walk_along if probes else "colours",
            last=protocol.last_threshold if probes else "maps",
        )

    def forms(self) -> Table:
        rows = [
            Variant("closed: mean", self.closed(self.systems, steps=0, saliency=False)),
            Variant("closed: mean × saliency", self.closed(self.systems, steps=0)),
            Variant("closed: mean × saliency, walk", self.closed(self.systems)),
        ]
        probes = self.settings.protocol.probes
        if probes and "features" in self.cues:
            way = self.closed(self.systems, probes=probes)
            rows.append(Variant("closed: … and the probe", way))
            without = replace(self.settings, network=False)
            rows.append(Variant("no network, probes alone", self.way(without)))
            for name in self.systems:
                alone = self.way(without, systems=(name,))
                rows.append(Variant(f"{name} alone with its probes", alone))
        return Table(
            "Combiner and closed forms",
            (self.all, *rows),
            f"Closed forms at {self.settings.protocol.threshold}, that with the probe at Otsu's "
            "threshold of the images that teach, the combiner at its own 1/2. A system alone with "
            "its probes is the single system with the same refinement.",
        )

    def groups_out(self) -> Table:
        rows = []
        for group in self._seen():
            kept = tuple(name for name in self.groups if name != group)
            rows.append(Variant(f"without {group}", self.way(_seeing(self.settings, kept))))
        if "saliency" in self.cues:  # the one cue that teachers have beside the photograph
            way = replace(self.way(), cues=tuple(name for name in self.cues if name != "saliency"))
            rows.append(Variant("no saliency for teachers either", way))
        if "features" in self.cues:
            rows.append(self._protocol("no probe for teachers either", probes=0))
        note = (
            "A group that is out is not seen by the network. Teachers go on with saliency and the "
            "probe; only the last rows take one from them too. Groups that can stand in for one "
            "another hide one another here: see the next table."
        )
        return Table("Input groups: one out", (self.all, *rows), note)

    def groups_in(self) -> Table:
        alone = Variant("own alone", self.way(_seeing(self.settings, ("own",))))
        rows = [
            Variant(f"own and {group}", self.way(_seeing(self.settings, ("own", group))))
            for group in self._seen()
        ]
        note = "Each network sees the systems' own scores and one group more; teachers see all."
        return Table("Input groups: one added to own", (alone, *rows, self.all), note)

    def systems_out(self) -> Table:
        rows = [
            Variant(f"learned without {name}", self.way(systems=self._without(name)))
            for name in self.systems
        ]
        return Table(
            "Systems: one out",
            (self.all, *rows),
            "The system is not there, neither to learn from nor to be fused.",
        )

    def systems_in(self) -> Table:
        first = self.systems[0]
        alone = Variant(f"learned from {first}", self.way(systems=(first,)))
        rows = [
            Variant(f"learned from {first} and {name}", self.way(systems=(first, name)))
            for name in self.systems[1:]
        ]
        return Table("Systems: one added to the first", (alone, *rows))

    def numbers(self) -> Table:
        rows = []
        for count in range(1, len(self.systems) + 1):
            chosen = self.systems[:count]
            whole = count == len(self.systems)
            rows.append(self.all if whole else Variant(_count(count), self.way(systems=chosen)))
            rows.append(Variant(f"{_count(count)}, closed form", self.closed(chosen)))
        note = f"In the order {', '.join(self.systems)}; the closed form is the students' teacher."
        return Table("Number of systems", tuple(rows), note)

    def missing(self) -> Table:
        half = self.systems[: (len(self.systems) + 1) // 2]
        parts = {f"{name} missing": self._without(name) for name in self.systems}
        parts |= {f"only {', '.join(half)}": half}
        parts |= {f"only {name}": (name,) for name in self.systems}
        rows = []
        for title, rest in parts.items():
            rows.append(Variant(title, replace(self.way(), tested=rest)))
            rows.append(Variant(f"{title}, closed form", self.closed(rest)))
        whole = Variant("all, closed form", self.closed(self.systems))
        note = "One combiner, learned from all systems; some of them are not there when it fuses."
        return Table("Systems missing at test time", (self.all, whole, *rows), note)

    def distorted(self, victim: str) -> Table:
        noise = changed(victim, "noise")
        more = (*self.systems, noise)
        rows = [
            Variant("noise added at test", replace(self.way(), tested=more)),
            Variant("noise added, learned with", self.way(systems=more)),
            Variant("noise added, closed form", self.closed(more)),
        ]
        for change in CHANGES:
            instead = tuple(changed(victim, change) if s == victim else s for s in self.systems)
            title = f"{changed(victim, change)} at test"
            rows.append(Variant(title, replace(self.way(), tested=instead)))
            rows.append(Variant(f"{title}, closed form", self.closed(instead)))
        whole = Variant("all, closed form", self.closed(self.systems))
        note = f"{victim} becomes another, or a system of pure noise comes to it."
        return Table("Noise and other units", (self.all, whole, *rows), note)

    def views(self) -> Table:
        rows = [self._protocol("distilled from full views alone", full_view=1.0)]
        free = replace(self.settings, keep_share=False)
        apart = replace(self.settings, with_probes=False)
        if "features" in self.cues:
            rows += [
                self._protocol("the probe learned once", probes=1),
                Variant("no last probe", self.way(replace(self.settings, last_probe=False))),
                Variant("the last probe's share free", self.way(free)),
                Variant("the network without the probes", self.way(apart)),
                Variant("students teach", self.way(self.by_students)),
                self._of_students("students see the probe", probe_students=True),
            ]
        twice = replace(self.by_students, rounds=2)
        rows += [
            self._of_students("students see all systems", restricted=False),
            self._of_students("all systems teach", disjoint=False),
            self._of_students("students see all, all teach", restricted=False, disjoint=False),
            self._of_students("one student", students=1),
            self._of_students("two students", students=2),
            Variant("two rounds of students", self.way(twice)),
        ]
        note = (
            "Where there are frozen features, what probes make of the systems teaches the network, "
            "and the rows about students compare with *students teach*."
        )
        return Table(
            "Who teaches: probes, or students of restricted views", (self.all, *rows), note
        )

    def walks(self) -> Table:
        protocol = self.settings.protocol
        shape = replace(protocol.shape, walk_steps=0)
        along = replace(protocol.shape, cut_walks=True)
        cut = self._protocol("walks are cut by edges", shape=along)
        colours = self._protocol("teachers walk along colours alone", walk_along="colours")
        rows = [
            self._protocol("teachers do not walk", walk_steps=0),
            *((colours,) if "features" in self.cues else ()),
            self._of_students("students' mean does not walk", average_steps=0),
            self._protocol("nothing walks", walk_steps=0, average_steps=0, shape=shape),
            *((cut,) if "edges" in self.cues else ()),
            Variant("closed: mean × saliency, walk", self.closed(self.systems)),
            Variant("closed: mean × saliency", self.closed(self.systems, steps=0)),
        ]
        note = "The last walk left out is the one among the network's own inputs."
        return Table("With and without random walk", (self.all, *rows), note)

    def thresholds(self) -> Table:
        fixed = replace(self.settings, teacher_threshold="fixed")
        rows = [
            Variant(
                f"teachers at {threshold}",
                self.way(replace(fixed, protocol=replace(fixed.protocol, threshold=threshold))),
            )
            for threshold in (0.3, 0.4, 0.5)
        ]
        note = (
            "Where no class of the teachers' maps exceeds it is background; usually by Otsu's rule "
            "on these maps. The last row: nothing holds the predicted share of background at that "
            "of the labels."
        )
        free = self._protocol("shares not kept", share_weight=0.0)
        return Table("Threshold of the teachers", (self.all, *rows, free), note)

    def lengths(self) -> Table:
        long = replace(self.settings, distil_epochs=4 * self.settings.distil_epochs)
        half = replace(long, distil_epochs=long.distil_epochs // 2)
        watched = replace(long, patience=2)
        rows = [
            Variant("distilled twice as long", self.way(half)),
            Variant("distilled four times as long", self.way(long)),
            Variant("four times as long, ended by left-out systems", self.way(watched)),
        ]
        note = (
            "The last row ends after two epochs in which systems that are left out are predicted "
            "no better, and keeps the best state; a tenth of the images judge and do not teach."
        )
        return Table("Length of distillation", (self.all, *rows), note)

    def labels(self, shots: Sequence[int]) -> Table:
        rows = [Variant(f"k = {k}", replace(self.way(), shots=k)) for k in shots]
        note = (
            "Another regime: the masks of k training images are read, so these numbers stand "
            "beside no label-free ones but the first row (k = 0), from which they go on."
        )
        return Table("Labelled images", (self.all, *rows), note)

    def _without(self, name: str) -> tuple[str, ...]:
        return tuple(system for system in self.systems if system != name)

    def _protocol(self, name: str, **other: object) -> Variant:
        protocol = replace(self.settings.protocol, **other)
        return Variant(name, self.way(replace(self.settings, protocol=protocol)))

    def _seen(self) -> tuple[str, ...]:
        """Groups beside the own scores; a network that probes taught sees none of them itself."""
        taught = self.settings.probes_teach("features" in self.cues)
        return tuple(group for group in self.groups[1:] if group != "probe" or not taught)

    @property
    def by_students(self) -> Combining:
        """The settings with students as teachers; without frozen features they teach anyway."""
        if not self.settings.probes_teach("features" in self.cues):
            return self.settings
        return replace(self.settings, teacher="students")

    def _of_students(self, name: str, **other: object) -> Variant:
        base = self.by_students
        return Variant(name, self.way(replace(base, protocol=replace(base.protocol, **other))))


_NEEDS = MappingProxyType(
    {"saliency": ("saliency",), "edges": ("edge",), "features": ("features", "probe")}
)
"""The groups of inputs that show nothing without a cue."""


def _seeing(settings: Combining, groups: tuple[str, ...]) -> Combining:
    """The settings with a network that sees these groups alone, in their usual order."""
    ordered = tuple(name for name in GROUPS if name in groups)
    shape = replace(settings.protocol.shape, groups=ordered)
    return replace(settings, protocol=replace(settings.protocol, shape=shape))


def _count(systems: int) -> str:
    return f"{systems} system{'s' if systems > 1 else ''}"
