"""Damaged and hostile files: every reader answers with its value or with one error of a user.

    python benchmarks/fuzz_readers.py --mutations 10000

Small whole files of each kind are written, then changed at random (bits, bytes, cuts, doubled
parts, lengths that lie; members of archives and chunks of PNGs behind checksums that hold; values
of JSON), and read. A reader survives when it returns or raises UserError that names the file; every
other exception, more than ten seconds of the processor, or more than 500 MB is a failure. The seed
makes a run repeatable.
"""

import argparse
import io
import json
import resource
import signal
import struct
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import fuzz_samples as files
import numpy as np

from wsss_jax.data.classes import VOC
from wsss_jax.data.files import read_levels, read_mask
from wsss_jax.data.ids import Index
from wsss_jax.data.mask_files import colour_table, read_truth
from wsss_jax.data.photographs import read_image
from wsss_jax.data.stores import Store, open_store
from wsss_jax.data.texts import read_json
from wsss_jax.datasets import coco
from wsss_jax.datasets.labels import LabelTable, json_table, npz_table, xml_table
from wsss_jax.datasets.lists import ids_of
from wsss_jax.datasets.tables import text_table
from wsss_jax.errors import BadFileError, UserError
from wsss_jax.export.brush_tasks import mask_of, read_tasks
from wsss_jax.export.drawn_masks import of_coco, of_cvat
from wsss_jax.formats.pickled_arrays import read_content, read_vectors
from wsss_jax.priors import regions
from wsss_jax.priors.external import Wanted, read_file, read_maps
from wsss_jax.stages import train
from wsss_jax.weights.import_files import read_arrays
from wsss_jax.weights.import_hub import configured

SECONDS = 10
MEGABYTES = 500
CVAT = (
    b'<annotations><image id="0" name="a.jpg" width="4" height="3"><mask label="cat" rle="1, 2, 1" '
    b'left="1" top="1" width="2" height="2" z_order="0"></mask><polygon label="dog" '
    b'points="0,0;3,0;3,2"/></image></annotations>'
)
LYING = (0, 1, 0x7F, 0x80, 0xFF, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63 - 1)
STRANGE = (None, True, -1, 0, 1, 255, 2**31, 2**63, 2**200, 0.5, -0.5, 1e308, float("nan"),
           float("inf"), "", "a", "1", "cat", "../a", "x" * 1000, "\x00", "\u202e", [], {}, [[]],
           [None], [0.5] * 7, {"a": {}}, {"counts": "x", "size": [1, 1]})  # fmt: skip


class Hang(BaseException):
    """A reader that takes too long."""


@dataclass(frozen=True)
class Kind:
    """A reader and whole files for it. place: of the file below a folder that stays."""

    place: str
    samples: list[bytes]
    read: Callable[[Path], object]


@dataclass
class Result:
    """What became of the changed files of one kind."""

    read: int = 0
    refused: int = 0
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0


def kinds(folder: Path) -> dict[str, Kind]:
    """Every reader by name; folder: where the files of stores lie."""
    own = files.write_stores(folder / "own")
    photographs = Index({id: (folder / f"{id}.jpg",) for id in "ab"})
    labels = np.isin(np.arange(len(VOC)), (4, 7))

    def layout(name: str, first: int | None = None) -> Callable[[Path], object]:
        wanted = Wanted(VOC, labels, files.SIZE, files.SIZE, first)
        return lambda path: read_file(name, path, wanted)

    def record(holds: str, get: Callable[[Store, str], object]) -> Kind:
        path = own[holds].path("a")
        place = str(path.relative_to(folder))
        return Kind(place, [path.read_bytes()], lambda _: get(own[holds], "a"))

    index = (own["scores"].folder / "index.json").read_bytes()
    made = {
        **_layouts(layout),
        "read_maps": Kind("a.npy", files.dictionaries()[:7], read_maps),
        "arrays": Kind("a.npy", files.dictionaries(), read_content),
        "regions": Kind("a.json", files.region_files(), regions.read_regions),
        "photographs": Kind("a.jpg", files.pictures(), read_image),
        "levels": Kind("a.png", files.pictures(), read_levels),
        "masks": Kind("a.png", files.masks(), read_mask),
        "true masks": Kind("a.png", files.pictures()[:5], read_truth),
        "cls_labels.npy": Kind("a.npy", files.label_files(), read_vectors),
        "cls_labels.npz": Kind("a.npz", [files.label_archive()], lambda p: npz_table(p, VOC)),
        "label JSON": Kind("a.json", [files.label_json()], lambda path: _all(json_table(path))),
        "label table": Kind(
            "a.csv", files.label_tables(), lambda path: _all(text_table(path, photographs, None))
        ),
        "annotation": Kind("voc/a.xml", [files.annotation()], lambda path: _all(
            xml_table(path.parent, None, masks=False))),
        "list": Kind("a.txt", [b"a\nb\n"], lambda path: ids_of(path, photographs)),
        "colours": Kind("colours/colours.csv", [b"cat,128,0,0\ndog,0,128,0\n"],
                        lambda path: colour_table((path.parent,), VOC)),
        "COCO": Kind("coco/annotations/instances_v.json", files.coco_files(),
                     lambda path: coco.open_coco(path.parents[1], "v").mask("a")),
        "Label Studio": Kind("a.json", [files.brush_tasks()], lambda path: [
            mask_of(task, VOC, files.SIZE) for task in read_tasks(path, read_json(path))]),
        "CVAT": Kind("a.xml", [CVAT], lambda path: [one.read() for one in of_cvat(path, VOC)]),
        "drawn COCO": Kind("a.json", files.coco_files(), lambda path: [
            one.read() for one in of_coco(path, read_json(path), VOC)]),
        "store: scores": record("scores", Store.get_scores),
        "store: masks": record("masks", Store.get_mask),
        "store: regions": record("regions", regions.get_regions),
        "store: index": Kind("other/index.json", [index], lambda path: open_store(path.parent)),
        "run: settings": Kind("run/settings.json", [files.run_settings()], _run),
        "weights: config": Kind("a.json", [files.normalisation()],
                                lambda path: configured(path.with_suffix(".pth"))),
        "weights: MXNet": Kind("a.params", [files.mxnet()], read_arrays),
    }  # fmt: skip
    for ending, samples in files.weights().items():
        made[f"weights: {ending}"] = Kind(f"a{ending}", samples, read_arrays)
    return made


def _layouts(layout: Callable[..., Callable[[Path], object]]) -> dict[str, Kind]:
    """The layouts of other tools' maps."""
    dictionaries, planes = files.dictionaries(), files.planes()
    return {
        "irn": Kind("a.npy", dictionaries[:7], layout("irn")),
        "psa_cam": Kind("a.npy", dictionaries[7:8], layout("psa_cam")),
        "puzzle": Kind("a.npy", [files.numbered("hr_cam", (5, 8))], layout("puzzle")),
        "puzzle_rw": Kind("a.npy", [files.numbered("rw", (5, 8))], layout("puzzle_rw")),
        "ccam": Kind("a.npy", [files.numbered("hr_cam", (1,))], layout("ccam")),
        "clipes": Kind("a.npy", [files.numbered("attn_highres")], layout("clipes")),
        "dhr": Kind("a.pt", [files.torch_archive()], layout("dhr", 0)),
        "msc_seg": Kind("a.npy", [files.saved_array({"msc_seg": planes})], layout("msc_seg")),
        "weclip": Kind("a.npy", [files.saved_array({"segs": planes})], layout("weclip")),
        "array": Kind("a.npy", [files.saved_array(planes)], layout("array")),
        "oaa": Kind("a_4.png", files.masks()[:1], layout("oaa")),
        "mask_png": Kind("a.png", files.masks(), layout("mask_png")),
        "saliency_png": Kind("a.png", files.pictures()[:6], layout("saliency_png")),
        "instances": Kind("a.json", files.region_files()[1:2], layout("instances")),
    }


def _all(table: LabelTable) -> list[object]:
    """The labels of every photograph of a table; those of a damaged entry are refused."""
    return [table.of(id) for id in table.entries]


def _run(path: Path) -> object:
    """The settings of a run that is finished; its checkpoint is not there."""
    path.with_name("finished").touch()
    try:
        return train.trained(path.parent)
    except BadFileError as problem:
        if "without a checkpoint" not in str(problem):
            raise
        return None


def changed(content: bytes, generator: np.random.Generator) -> bytes:
    """The content changed at random: half of the time behind its checksums or in its values."""
    if generator.integers(2):
        if content.startswith(b"PK"):
            return _changed_member(content, generator)
        if content.startswith(b"\x89PNG"):
            return _changed_chunk(content, generator)
        if content[:1] in (b"[", b"{"):
            return json.dumps(_changed_value(json.loads(content), generator)).encode()
    return _changed_bytes(content, generator)


def _changed_member(content: bytes, generator: np.random.Generator) -> bytes:
    """A zip archive with one member changed, whose checksum holds."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w") as new:
        names = old.namelist()
        chosen = names[int(generator.integers(len(names)))]
        for name in names:
            member = old.read(name)
            new.writestr(name, _changed_bytes(member, generator) if name == chosen else member)
    return buffer.getvalue()


def _changed_chunk(content: bytes, generator: np.random.Generator) -> bytes:
    """A PNG with one chunk changed, whose checksum holds."""
    chunks, at = [], 8
    while at < len(content):
        length = int.from_bytes(content[at : at + 4], "big")
        chunks.append(content[at + 4 : at + 8 + length])
        at += 12 + length
    place = int(generator.integers(len(chunks)))
    kind, data = chunks[place][:4], chunks[place][4:]
    packed = kind == b"IDAT" and generator.integers(2)
    data = _changed_bytes(zlib.decompress(data) if packed else data, generator)
    chunks[place] = kind + (zlib.compress(data) if packed else data)
    whole = [
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
        for chunk in chunks
    ]
    return content[:8] + b"".join(whole)


def _changed_value(nest: Any, generator: np.random.Generator) -> Any:
    """A JSON value with one of its parts replaced, left out or doubled."""
    if not (isinstance(nest, (dict, list)) and nest and generator.integers(8)):
        return STRANGE[int(generator.integers(len(STRANGE)))]
    keys = list(nest) if isinstance(nest, dict) else list(range(len(nest)))
    key = keys[int(generator.integers(len(keys)))]
    match int(generator.integers(8)):
        case 0:
            del nest[key]
        case 1 if isinstance(nest, list):
            nest.append(nest[key])
        case 2 if isinstance(nest, dict):
            nest[str(key).upper()] = nest.pop(key)
        case _:
            nest[key] = _changed_value(nest[key], generator)
    return nest


def _changed_bytes(content: bytes, generator: np.random.Generator) -> bytes:
    """The content with one to four random changes."""
    data = bytearray(content)
    for _ in range(int(generator.integers(1, 5))):
        if not data:
            break
        place = int(generator.integers(len(data)))
        match int(generator.integers(8)):
            case 0:
                data[place] ^= 1 << int(generator.integers(8))
            case 1:
                data[place] = int(generator.integers(256))
            case 2:
                del data[place:]
            case 3:
                del data[place : place + int(generator.integers(1, 16))]
            case 4:
                data[place:place] = data[place : place + int(generator.integers(1, 64))]
            case 5:
                number = LYING[int(generator.integers(len(LYING)))]
                form = ("<I", "<Q", ">I", "<H")[int(generator.integers(4))]
                packed = struct.pack(form, number % 2 ** (8 * struct.calcsize(form)))
                data[place : place + len(packed)] = packed
            case 6:
                data[place:place] = str(LYING[int(generator.integers(len(LYING)))]).encode()
            case _:
                deep = int(generator.integers(1, 4000))
                data[place:place] = (b"[" if generator.integers(2) else b"(") * deep
    return bytes(data)


def stopped(number: int, frame: FrameType | None) -> None:
    raise Hang(f"more than {SECONDS} seconds of the processor")


def tried(kind: Kind, path: Path, content: bytes, result: Result) -> None:
    path.write_bytes(content)
    start = time.perf_counter()
    signal.setitimer(signal.ITIMER_PROF, SECONDS)  # a busy machine is no hang
    signal.setitimer(signal.ITIMER_REAL, 20 * SECONDS)
    try:
        kind.read(path)
        result.read += 1
    except UserError as problem:
        result.refused += 1
        # The file itself, or one beside it that it names (a photograph of COCO).
        folders = (path.name, path.parent.name, path.parents[1].name)
        if not any(name in str(problem) for name in folders):
            result.failures.append(f"names no file: {str(problem)[:200]}")
    except (Exception, Hang) as problem:
        result.failures.append(f"{type(problem).__name__}: {str(problem)[:200]}")
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
    result.seconds += time.perf_counter() - start


def fuzz(mutations: int, seed: int, only: tuple[str, ...] = ()) -> Iterator[tuple[str, Result]]:
    """Read ``mutations`` changed files per kind, one kind after the other; only: these kinds."""
    numbers = (signal.SIGALRM, signal.SIGPROF)
    before = [signal.signal(number, stopped) for number in numbers]
    try:
        with tempfile.TemporaryDirectory() as there:
            for name, kind in kinds(Path(there)).items():
                if only and name not in only:
                    continue
                result = Result()
                generator = np.random.default_rng([seed, *name.encode()])
                path = Path(there) / kind.place
                path.parent.mkdir(parents=True, exist_ok=True)
                for sample in kind.samples:
                    path.write_bytes(sample)
                    kind.read(path)  # whole files must be read
                for n in range(mutations):
                    sample = kind.samples[n % len(kind.samples)]
                    tried(kind, path, changed(sample, generator), result)
                path.unlink()
                yield name, result
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def peak() -> float:
    """The most memory that this process had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mutations", type=int, default=10_000, help="per kind of file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=(), help="kinds; all if none is given")
    settings = parser.parse_args()
    start = peak()
    print(f"{'reader':<22}{'tried':>8}{'survived':>10}{'read':>8}{'refused':>9}{'ms each':>9}")
    failed = 0
    for name, result in fuzz(settings.mutations, settings.seed, tuple(settings.only)):
        tries = settings.mutations
        each = 1000 * result.seconds / max(tries, 1)
        print(f"{name:<22}{tries:>8}{tries - len(result.failures):>10}{result.read:>8}"
              f"{result.refused:>9}{each:>9.2f}", flush=True)  # fmt: skip
        for failure in sorted(set(result.failures))[:5]:
            print(f"  {failure}")
        failed += len(result.failures)
    grown = peak() - start
    print(f"memory grew by {grown:.0f} MB at most, {MEGABYTES} are allowed")
    sys.exit(1 if failed or grown > MEGABYTES else 0)


if __name__ == "__main__":
    main()
