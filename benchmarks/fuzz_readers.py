"""Damaged and hostile files: every reader answers with its value or with one error of a user.

    python benchmarks/fuzz_readers.py --mutations 10000

Small whole files of each kind are written, then changed at random (bits, bytes, cuts, doubled
parts, lengths that lie), and read. A reader survives when it returns or raises UserError; every
other exception, more than ten seconds, or more than 500 MB is printed as a failure, and the script
ends with 1. The seed makes a run repeatable.
"""

import argparse
import io
import json
import pickle
import resource
import signal
import struct
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import numpy as np
from PIL import Image

from wsss_jax.data import stores
from wsss_jax.data.classes import VOC
from wsss_jax.data.files import read_levels, read_mask
from wsss_jax.data.photographs import read_image
from wsss_jax.datasets import coco
from wsss_jax.errors import UserError
from wsss_jax.formats.pickled_arrays import read_content, read_vectors
from wsss_jax.priors import regions
from wsss_jax.priors.external import Wanted, read_file
from wsss_jax.types import ScoreMaps
from wsss_jax.weights.import_files import read_arrays

SIZE = (6, 8)
SECONDS = 10
MEGABYTES = 500
VALUES = np.linspace(0, 1, 2 * 6 * 8, dtype=np.float32).reshape(2, *SIZE)
LYING = (0, 1, 0x7F, 0x80, 0xFF, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63 - 1)


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


def text(word: str) -> bytes:
    return b"X" + struct.pack("<I", len(word)) + word.encode()


def tensor(key: str, count: int) -> bytes:
    """The operations of a tensor (2,6,8) whose storage lies elsewhere."""
    sides = b"(" + b"".join(b"K" + bytes([n]) for n in (2, *SIZE)) + b"t"
    steps = b"(" + b"".join(b"K" + bytes([n]) for n in (48, 8, 1)) + b"t"
    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text(key) + text("cpu")
    storage += b"J" + struct.pack("<i", count)
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"tQ" + b"K\x00"
        + sides + steps + b"\x89ccollections\nOrderedDict\n)RtR"
    )  # fmt: skip


def torch_archive() -> bytes:
    buffer = io.BytesIO()
    nest = b"\x80\x02}(" + text("keys") + b"](K\x04K\x07e" + text("masks") + tensor("0", 96) + b"u."
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a/data.pkl", nest)
        archive.writestr("a/byteorder", b"little")
        archive.writestr("a/data/0", VALUES.tobytes())
    return buffer.getvalue()


def torch_stream() -> bytes:
    parts = [pickle.dumps(v, 2) for v in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    nest = b"\x80\x02}(" + text("cam") + tensor("7", 96).replace(b"tQ", b"NtQ") + b"u."
    return b"".join([*parts, nest, pickle.dumps(["7"], 2), struct.pack("<q", 96), VALUES.tobytes()])


def dictionaries() -> list[bytes]:
    content = {"keys": np.array([4, 7]), "high_res": VALUES, "more": {"a": None}, "name": "x"}
    plain = {4: VALUES[0], 7: VALUES[1]}
    made = [pickle.dumps(content, protocol) for protocol in range(6)]
    for one in (content, plain):
        buffer = io.BytesIO()
        np.save(buffer, np.array(one, object))
        made.append(buffer.getvalue())
    return [*made, torch_archive(), torch_stream(), *archives()]


def archives() -> list[bytes]:
    made = []
    for save in (np.savez, np.savez_compressed):
        buffer = io.BytesIO()
        save(buffer, keys=np.array([4, 7]), high_res=VALUES, names=np.array(["a", "bc"]))
        made.append(buffer.getvalue())
    return made


def saved(array: np.ndarray, kind: str = "PNG", mode: str | None = None) -> bytes:
    buffer = io.BytesIO()
    picture = Image.fromarray(array)
    (picture.convert(mode) if mode else picture).save(buffer, kind)
    return buffer.getvalue()


def masks() -> list[bytes]:
    mask = (VALUES[0] * 7).astype(np.uint8)
    return [saved(mask), saved(mask, mode="P")]


def pictures() -> list[bytes]:
    grey = (VALUES[0] * 255).astype(np.uint8)
    deep = (VALUES[0] * 65535).astype(np.uint16)
    modes = [saved(grey, mode=mode) for mode in ("L", "LA", "RGB", "1", "P")]
    return [*modes, saved(deep), saved(grey, "JPEG"), saved(grey, "BMP"), saved(grey, "WEBP")]


def region_files() -> list[bytes]:
    run = {"size": list(SIZE), "counts": [3, 5, 40]}
    packed = {"size": list(SIZE), "counts": "35X1"}
    polygon = [[1.0, 1.0, 5.0, 1.0, 5.0, 4.0]]
    sam = [{"segmentation": r, "area": 5, "bbox": [0, 0, 3, 3], "predicted_iou": 0.9} for r in
           (run, packed)]  # fmt: skip
    found = [{"image_id": 1, "category_id": 5, "score": 0.5, "segmentation": r} for r in
             (run, polygon)]  # fmt: skip
    grounded = {"annotations": [{"class_name": "cat", "score": [0.5], "segmentation": run}],
                "img_height": 6, "img_width": 8}  # fmt: skip
    return [json.dumps(value).encode() for value in (sam, found, grounded)]


def record() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, scores=VALUES.transpose(1, 2, 0).astype(np.float16), peak=np.ones(2, "f4"),
             classes=np.array([4, 7], np.int16), size=np.array(SIZE, np.int32))  # fmt: skip
    return buffer.getvalue()


def weights() -> dict[str, list[bytes]]:
    header = json.dumps({"w": {"dtype": "F32", "shape": [2, 6, 8], "data_offsets": [0, 384]}})
    safe = struct.pack("<Q", len(header)) + header.encode() + VALUES.tobytes()
    return {".pth": [torch_archive(), torch_stream()], ".npz": [record()], ".safetensors": [safe],
            ".onnx": [onnx_model()]}  # fmt: skip


def onnx_model() -> bytes:
    """One layer as PyTorch exports it; every length here is below 128 but those of two bytes."""

    def field(number: int, content: bytes) -> bytes:
        length = len(content)
        size = bytes([length]) if length < 128 else bytes([length & 127 | 128, length >> 7])
        return bytes([number << 3 | 2]) + size + content

    sides = b"".join(bytes([1 << 3, n]) for n in (12, 8))
    tensor = sides + b"\x10\x01" + field(8, b"onnx::MatMul_7") + field(9, VALUES.tobytes())
    node = field(1, b"x") + field(1, b"onnx::MatMul_7") + field(3, b"/a/MatMul")
    graph = field(1, node + field(4, b"MatMul")) + field(5, tensor)
    return b"\x08\x07" + field(2, b"pytorch") + field(7, graph)


def label_files() -> list[bytes]:
    vectors = {f"2007_00000{n}": np.eye(20, dtype=np.float32)[n] for n in range(5)}
    buffer = io.BytesIO()
    np.save(buffer, np.array(vectors, object))
    return [buffer.getvalue(), pickle.dumps({2007000032: np.ones(20)}, 2)]


def coco_files() -> list[bytes]:
    things = [{"image_id": 1, "category_id": 5, "segmentation": [[1, 1, 5, 1, 5, 4]], "area": 9}]
    images = [{"id": 1, "file_name": "a.jpg", "height": 6, "width": 8}]
    whole = {"images": images, "annotations": things, "categories": [{"id": 5, "name": "cat"}]}
    return [json.dumps(whole).encode()]


def kinds(folder: Path) -> dict[str, Kind]:
    """Every reader by name; folder: where the files of stores lie."""
    store = stores.create(folder / "own", holds="scores", classes=VOC.names, made_by={})
    maps = ScoreMaps(VALUES.transpose(1, 2, 0), np.array([4, 7]), SIZE, np.ones(2, np.float32))
    store.put_scores("a", maps)
    index = (folder / "own/index.json").read_bytes()
    labels = np.isin(np.arange(len(VOC)), (4, 7))

    def layout(name: str, first: int | None = None) -> Callable[[Path], object]:
        wanted = Wanted(VOC, labels, SIZE, SIZE, first)
        return lambda path: read_file(name, path, wanted)

    made = {
        "arrays": Kind("a.npy", dictionaries(), read_content),
        "irn": Kind("a.npy", dictionaries()[:7], layout("irn")),
        "psa_cam": Kind("a.npy", dictionaries()[7:8], layout("psa_cam")),
        "dhr": Kind("a.pt", [torch_archive()], layout("dhr", 0)),
        "cls_labels": Kind("a.npy", label_files(), read_vectors),
        "mask_png": Kind("a.png", masks(), layout("mask_png")),
        "saliency_png": Kind("a.png", pictures()[:6], layout("saliency_png")),
        "levels": Kind("a.png", pictures(), read_levels),
        "masks": Kind("a.png", masks(), read_mask),
        "photographs": Kind("a.jpg", pictures(), read_image),
        "regions": Kind("a.json", region_files(), regions.read_regions),
        "record": Kind("own/scores/a.npz", [record()], lambda path: store.get_scores("a")),
        "index": Kind("other/index.json", [index], lambda path: stores.open_store(path.parent)),
        "coco": Kind("coco/annotations/instances_v.json", coco_files(),
                     lambda path: coco.open_coco(path.parents[1], "v").mask("a")),
    }  # fmt: skip
    for ending, samples in weights().items():
        made[f"weights {ending}"] = Kind(f"a{ending}", samples, read_arrays)
    return made


def changed(content: bytes, generator: np.random.Generator) -> bytes:
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
    raise Hang(f"more than {SECONDS} seconds")


def tried(kind: Kind, path: Path, content: bytes, result: Result) -> None:
    path.write_bytes(content)
    start = time.perf_counter()
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
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
        signal.setitimer(signal.ITIMER_REAL, 0)
    result.seconds += time.perf_counter() - start


def fuzz(mutations: int, seed: int, only: tuple[str, ...] = ()) -> dict[str, Result]:
    """Read ``mutations`` changed files per kind; only: these kinds instead of all."""
    before = signal.signal(signal.SIGALRM, stopped)
    try:
        with tempfile.TemporaryDirectory() as there:
            results = {}
            for name, kind in kinds(Path(there)).items():
                if only and name not in only:
                    continue
                results[name] = result = Result()
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
            return results
    finally:
        signal.signal(signal.SIGALRM, before)


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
    results = fuzz(settings.mutations, settings.seed, tuple(settings.only))
    print(f"{'reader':<22}{'tried':>8}{'survived':>10}{'read':>8}{'refused':>9}{'ms each':>9}")
    failed = 0
    for name, result in results.items():
        tries = settings.mutations
        each = 1000 * result.seconds / max(tries, 1)
        print(f"{name:<22}{tries:>8}{tries - len(result.failures):>10}{result.read:>8}"
              f"{result.refused:>9}{each:>9.2f}")  # fmt: skip
        for failure in sorted(set(result.failures))[:5]:
            print(f"  {failure}")
        failed += len(result.failures)
    grown = peak() - start
    print(f"memory grew by {grown:.0f} MB at most, {MEGABYTES} are allowed")
    sys.exit(1 if failed or grown > MEGABYTES else 0)


if __name__ == "__main__":
    main()
