"""Which network a weight file is for, and everything else that is known of it.

The number of its values chooses the few networks that are tried; names and shapes decide.
"""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

from wsss_jax.backbones import BACKBONES
from wsss_jax.errors import MissingFileError, UserError, first_few
from wsss_jax.models import build
from wsss_jax.types import Provenance
from wsss_jax.weights import import_files, import_names
from wsss_jax.weights import loading as weights
from wsss_jax.weights.families import family_of
from wsss_jax.weights.import_files import WeightFile
from wsss_jax.weights.known_weights import WEIGHTS, Weights
from wsss_jax.weights.normalisation import Normalisation, named
from wsss_jax.weights.sources import Resolved, resolve

T = TypeVar("T")

UNKNOWN = "not known"
"""What is said of weights that neither the table nor their own notes describe."""

AUTO, STANDARD = "auto", "mobilenet_v2"
"""As the name of a backbone: whichever the weights are for; and without weights which one."""

VALUES: Mapping[str, int] = MappingProxyType({
    "efficientnet_lite0": 3_413_024, "efficientnet_lite1": 4_189_344,
    "efficientnet_lite2": 4_869_168, "mobilenet_v1": 3_196_032, "mobilenet_v2": 2_206_816,
    "mobilenetv2_100": 2_257_984, "resnest14": 8_585_024, "resnest26": 15_057_184,
    "resnest50": 25_498_816, "resnest101": 46_356_128, "resnest200": 68_370_976,
    "resnest269": 109_194_912, "resnet18": 11_186_112, "resnet38d": 105_118_656,
    "resnet50": 23_561_152, "resnet50_irn": 23_561_152, "resnet101": 42_605_504,
    "tiny": 142_992, "vit_tiny": 5_524_416, "vit_small": 21_665_664, "vit_base": 85_798_656,
    "vit_large": 303_301_632, "vit_base_r50": 97_890_112, "resnet50v2": 8_562_892,
    "vit_small_patch8": 21_670_272, "vit_base_patch8": 85_807_872,
    "vit_small_patch32": 22_493_952, "vit_base_patch32": 87_455_232, "deit_tiny": 5_524_416,
    "deit_small": 21_665_664, "deit_base": 85_798_656, "deit_tiny_distilled": 5_524_608,
    "deit_small_distilled": 21_666_048, "deit_base_distilled": 85_799_424,
    "dinov2_vits14": 22_046_976, "dinov2_vitb14": 86_561_280, "dinov2_vitl14": 304_318_464,
    "dinov2_vits14_reg": 22_048_512, "dinov2_vitb14_reg": 86_564_352,
    "dinov2_vitl14_reg": 304_322_560, "clip_vit_b16": 85_800_192,
    "clip_vit_b16_quick": 85_800_192, "clip_vit_b32": 87_456_768,
    "clip_vit_b32_quick": 87_456_768, "clip_vit_l14": 303_180_800,
    "clip_vit_l14_quick": 303_180_800, "resnet34": 21_301_696, "resnet152": 58_295_232,
    "dinov3_vits16": 21_591_552, "dinov3_vitb16": 85_650_432, "dinov3_vitl16": 303_104_000,
    "wide_resnet50_2": 66_902_464, "resnext50": 23_048_128, "resnet50d": 23_580_512,
    "resnest50_fast_1s1x64d": 24_224_128, "resnest50_fast_2s1x64d": 25_498_816,
    "resnest50_fast_4s1x64d": 29_947_168, "resnest50_fast_1s2x40d": 23_957_136,
    "resnest50_fast_2s2x40d": 24_965_976, "resnest50_fast_4s2x40d": 28_463_376,
    "resnest50_fast_1s4x24d": 23_691_680,
})  # fmt: skip
"""Numbers of values that need not be counted. A new backbone need not be here (``size_of``)."""

_SAME: Mapping[str, str] = MappingProxyType({
    "resnet50_irn": "resnet50", "deit_tiny": "vit_tiny", "deit_small": "vit_small",
    "deit_base": "vit_base",
})  # fmt: skip
"""Backbones that differ from another only in strides or normalisation: their files fit that one."""

_NEAR = 1.7
"""A file for a network has at most this many times as many values, or as few: heads that are not
known as such, and position embeddings of another size."""

_HEAD = re.compile(
    r"(^|[./])(_?fc|heads?|head_dist|classifier|last_linear|pre_logits|fc_norm|52_conv)[./]"
    r"|num_batches_tracked$"
)

_VARIANT = re.compile(r"\d+s\d+x\d+d")
"""ResNeSt's fast variants in names of files and backbones: 2s1x64d."""


class Known(NamedTuple):
    """What is known of weights.

    path: the file. network: in BACKBONES. normalisation: of its images. weights, entry: its name
    and line in WEIGHTS, where it has one. arrays, values: of the network in the file. kind: npz,
    safetensors, torch, mxnet or onnx.
    """

    path: Path
    network: str
    normalisation: Normalisation
    weights: str | None
    entry: Weights | None
    arrays: int
    values: int
    kind: str

    @property
    def supervision(self) -> str:
        """What people had to provide for these weights, as far as it is known."""
        return UNKNOWN if self.entry is None else self.entry.supervision

    @property
    def licence(self) -> str:
        """The licence of these weights, as far as it is known."""
        return UNKNOWN if self.entry is None else self.entry.licence or UNKNOWN


def known(given: str | Path, network: str | None = None, normalise: str | None = None) -> Known:
    """Resolve weights, find their network and normalisation; nothing is loaded into a network.

    given: what ``sources.resolve`` takes. network: a name of BACKBONES; None or ``auto`` finds it.
    normalise: where the file does not tell it. Raises UserError where the file fits no network
    (naming what it is, or the nearest and the misfits) or several with different outputs, and
    where its normalisation must be said.
    """
    found = resolve(given)
    file = import_files.read(found.path)
    entry = weights.known(file, found)
    called = str(found.path)
    backbone = network if network not in (None, AUTO) else _network(file, found, entry)
    module = build.of_shapes(backbone)
    arrays, table = weights.plain(module, file, called=called)
    problems = import_names.converted(import_names.values_of(module), arrays, table)[1]
    if problems:
        hint = weights.hint(file, found)
        raise UserError(import_names.refusal(module, problems, called=called, hint=hint))
    chosen = weights.normalisation(module, arrays, file, found, normalise)
    used = {name for source in table.sources.values() for name in source.names}
    name = found.name or file.about.get("weights")
    values = sum(math.prod(arrays[n].shape) for n in used if n in arrays)
    return Known(
        found.path, backbone, chosen, name, entry, len(used), values, file.kind
    )  # fmt: skip


def provenance(given: str | Path) -> Provenance:
    """For tables of results: name, licence and supervision of weights; reads no arrays.

    given: what ``sources.resolve`` takes. Of a file that is neither known nor ours only its name
    is known, and of one that is not here what the table tells of that name.
    """
    try:
        found = resolve(given)
    except MissingFileError:
        found = Resolved(Path(given))
    for name, entry in WEIGHTS.items():
        if found.name == name or (not found.path.exists() and found.path.name == entry.file):
            return Provenance(name, entry.licence or UNKNOWN, entry.supervision)
    notes = import_files.read_notes(found.path) if found.path.exists() else {}
    return Provenance(
        notes.get("weights", found.path.name),
        notes.get("licence", UNKNOWN),
        notes.get("supervision", UNKNOWN),
    )


def provenances(settings: Any) -> tuple[Provenance, ...]:
    """Those of all weights in settings: of every dataclass in them that has ``weights``."""
    if not dataclasses.is_dataclass(settings) or isinstance(settings, type):
        return ()
    found: list[Provenance] = []
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if field.name == "weights" and value is not None:
            found.append(provenance(value))
        found += provenances(value)
    return tuple(dict.fromkeys(found))


def convert(
    given: str | Path, target: Path, network: str | None = None, normalise: str | None = None
) -> Known:
    """Write weights of any layout as an npz of ours, which carries what is known of them.

    Arguments and errors as for ``known``; UserError with the misfits where the file does not fit
    the named network.
    """
    found = known(given, network, normalise)
    module = build.of_shapes(found.network)
    weights.load(module, found.path, normalise=normalise)
    about = {"network": found.network, "file": found.path.name}
    if found.weights is not None:
        about["weights"] = found.weights
    about |= {"licence": found.licence, "supervision": found.supervision}
    weights.save(module, target, about)
    return found


def settled(settings: T, *, needed: bool = True) -> T:
    """Settings with weights, by which the network can be built again without their file.

    In every dataclass that has ``weights``, ``backbone`` and ``normalise``: weights become the
    file's path, a backbone ``auto`` the one they are for (STANDARD without weights), and a
    normalisation that is not the network's own is filled in. needed: whether a missing file is an
    error; else such settings stay as they are. Errors as for ``known``.
    """
    if not dataclasses.is_dataclass(settings) or isinstance(settings, type):
        return settings
    values: dict[str, Any] = {
        field.name: settled(getattr(settings, field.name), needed=needed)
        for field in dataclasses.fields(settings)
        if field.init
    }
    if not {"weights", "backbone", "normalise"} <= values.keys():
        return dataclasses.replace(settings, **values)
    if values["weights"] is None:
        values["backbone"] = backbone_of(values["backbone"], None, None)
    else:
        try:
            found = settled_weights(values["weights"], values["backbone"], values["normalise"])
            values |= dict(zip(("weights", "backbone", "normalise"), found, strict=True))
        except MissingFileError:
            if needed:
                raise
    return dataclasses.replace(settings, **values)


def backbone_of(name: str, given: str | Path | None, normalise: str | None) -> str:
    """The backbone that is meant by a name, which may be ``auto``, with these weights or none."""
    if name != AUTO:
        return name
    return STANDARD if given is None else settled_weights(given, AUTO, normalise)[1]


def settled_weights(
    given: str | Path, network: str, normalise: str | None
) -> tuple[Path, str, str | None]:
    """File, backbone and the text of the normalisation of weights; None for the network's own."""
    found = known(given, network, normalise)
    own = named(weights.own(build.of_shapes(found.network)))
    text = named(found.normalisation)
    return found.path, found.network, None if text == own else text


@cache
def size_of(name: str) -> int:
    """Parameters and statistics of a backbone, without a classifier.

    Counting takes a tenth of a second of processor time, so that VALUES spares it for most.
    """
    if name in VALUES:
        return VALUES[name]
    return sum(math.prod(x.shape) for x in import_names.values_of(build.of_shapes(name)).values())


def fitting(file: WeightFile, called: str, hint: str = "") -> str:
    """The backbone that a weight file fits exactly.

    hint: names by which variants are told apart that have the same arrays. Raises UserError where
    none fits, and where several do that compute different things.
    """
    if file.kind == "mxnet":
        return "resnet38d"  # the only one that was published so
    fits, misfits = [], {}
    for name in _candidates(file):
        if fits and size_of(name) != size_of(fits[0]):
            continue  # what fits a network fits none of another size
        problems = _misfits(name, file, called)
        if problems is None:
            continue
        if not problems:
            fits.append(name)
        misfits[name] = problems
    if fits:
        return _chosen(fits, hint, called)
    raise UserError(_refusal(file, called, misfits))


def _network(file: WeightFile, found: Resolved, entry: Weights | None) -> str:
    noted = file.about.get("network") or (entry.network if entry is not None else None)
    if noted in BACKBONES:
        return str(noted)
    if entry is not None:
        raise UserError(f"{found.path}: weights of {noted}, a network that is not in BACKBONES")
    hint = str(found.path.name)
    repository = next((part for part in found.path.parts if part.startswith("models--")), "")
    return fitting(file, str(found.path), f"{repository} {hint}")


def _candidates(file: WeightFile) -> list[str]:
    """Backbones whose number of values is near the file's, nearest first."""
    counts = [
        sum(math.prod(x.shape) for name, x in arrays.items() if not _HEAD.search(name))
        for arrays in weights.unwrapped(file.arrays)
    ]

    def distance(name: str) -> float:
        return min(abs(math.log(max(count, 1) / size_of(name))) for count in counts)

    near = [name for name in BACKBONES if distance(name) <= math.log(_NEAR)]
    return sorted(near, key=distance)


def _misfits(name: str, file: WeightFile, called: str) -> list[str] | None:
    """All that does not fit a backbone; None for one that was never published."""
    module = build.of_shapes(name)
    try:
        arrays, table = weights.plain(module, file, called=called)
    except UserError:
        return None
    return import_names.converted(import_names.values_of(module), arrays, table)[1]


def _chosen(fits: Sequence[str], hint: str, called: str) -> str:
    """Of backbones that all fit, the one that is meant."""
    rest = [name for name in fits if _SAME.get(name) not in fits]
    if len(rest) == 1:
        return rest[0]
    wanted = _VARIANT.search(hint)
    plain = re.sub(r"[^a-z0-9]", "", hint.lower())
    variants = {name: _VARIANT.search(name) for name in rest}
    if wanted is None:
        meant = [n for n, v in variants.items() if v is None and n.replace("_", "") in plain]
    else:
        meant = [n for n, v in variants.items() if v is not None and v.group() == wanted.group()]
    if len(meant) == 1:
        return meant[0]
    raise UserError(
        f"{called} fits {', '.join(rest)}, whose outputs differ; its names do not tell which: "
        "add --backbone"
    )


def _refusal(file: WeightFile, called: str, misfits: Mapping[str, Sequence[str]]) -> str:
    family = next((f for n in weights.unwrapped(file.arrays) if (f := family_of(n))), None)
    fewest = min(map(len, misfits.values()), default=len(file.arrays))
    if family is not None and 5 * fewest > len(file.arrays):
        return f"{called}: this is a {family.name}, which is not supported; take {family.instead}"
    if not misfits:
        return (
            f"{called} fits no backbone: {len(file.arrays)} arrays, the first "
            f"{first_few(file.arrays)} (known: {', '.join(BACKBONES)})"
        )
    nearest = min(misfits, key=lambda name: len(misfits[name]))
    lines = misfits[nearest]
    return (
        f"{called} fits no backbone; nearest is {nearest}, with {len(lines)} misfits:\n  "
        + "\n  ".join(import_names.shortened(lines))
    )
