"""Whole files of every kind that is read, for ``fuzz_readers`` to damage."""

import io
import json
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from wsss_jax.config import as_json
from wsss_jax.data import stores
from wsss_jax.data.classes import VOC
from wsss_jax.formats.run_lengths import brush_bytes
from wsss_jax.priors import regions
from wsss_jax.stages.train import Training
from wsss_jax.systems import Classifier
from wsss_jax.types import ScoreMaps

SIZE = (6, 8)
VALUES = np.linspace(0, 1, 2 * 6 * 8, dtype=np.float32).reshape(2, *SIZE)


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


def saved_array(value: object) -> bytes:
    """What ``np.save`` writes."""
    buffer = io.BytesIO()
    np.save(buffer, np.asarray(value, None if isinstance(value, np.ndarray) else object))
    return buffer.getvalue()


def numbered(field: str, keys: tuple[int, ...] = (4, 7)) -> bytes:
    """A dictionary of class numbers and of maps under this name."""
    return saved_array({"keys": np.array(keys), field: VALUES[: len(keys)]})


def planes() -> np.ndarray:
    """Logits of background and the 20 classes of VOC."""
    return np.linspace(-9, 9, 21 * 6 * 8, dtype=np.float32).reshape(1, 21, *SIZE)


def archives() -> list[bytes]:
    made = []
    for save in (np.savez, np.savez_compressed):
        buffer = io.BytesIO()
        save(buffer, keys=np.array([4, 7]), high_res=VALUES, names=np.array(["a", "bc"]))
        made.append(buffer.getvalue())
    return made


def saved(
    array: np.ndarray, kind: str = "PNG", mode: str | None = None, **options: object
) -> bytes:
    buffer = io.BytesIO()
    picture = Image.fromarray(array)
    (picture.convert(mode) if mode else picture).save(buffer, kind, **options)
    return buffer.getvalue()


def masks() -> list[bytes]:
    mask = (VALUES[0] * 7).astype(np.uint8)
    return [saved(mask), saved(mask, mode="P")]


def pictures() -> list[bytes]:
    grey = (VALUES[0] * 255).astype(np.uint8)
    deep = (VALUES[0] * 65535).astype(np.uint16)
    modes = [saved(grey, mode=mode) for mode in ("L", "LA", "RGB", "1", "P")]
    others = [saved(grey, kind) for kind in ("JPEG", "BMP", "WEBP", "GIF", "TIFF", "AVIF", "TGA")]
    scans = saved(grey, "JPEG", "RGB", progressive=True)
    return [*modes, saved(deep), *others, saved(deep, "PPM"), saved(grey, "JPEG2000"), scans]


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
    """One linear layer as PyTorch exports it."""

    def field(number: int, content: bytes) -> bytes:
        length = len(content)
        size = bytes([length]) if length < 128 else bytes([length & 127 | 128, length >> 7])
        return bytes([number << 3 | 2]) + size + content

    sides = b"".join(bytes([1 << 3, n]) for n in (12, 8))
    weight = sides + b"\x10\x01" + field(8, b"onnx::MatMul_7") + field(9, VALUES.tobytes())
    node = field(1, b"x") + field(1, b"onnx::MatMul_7") + field(3, b"/a/MatMul")
    graph = field(1, node + field(4, b"MatMul")) + field(5, weight)
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


def annotation() -> bytes:
    objects = "".join(f"<object><name>{name}</name></object>" for name in ("cat", "dog"))
    return f"<annotation><filename>a.jpg</filename>{objects}</annotation>".encode()


def label_tables() -> list[bytes]:
    return [
        b"file,label\na.jpg,cat\nb.jpg,dog;cat\n",
        b"image\tcat\tdog\na.jpg\t1\t0\nb.jpg\t1\t1\n",
    ]


def label_json() -> bytes:
    return json.dumps(
        {"classes": ["cat", "dog"], "image_labels": {"a": ["cat"], "b": [1]}}
    ).encode()


def label_archive() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, ids=np.array(["a", "b"]), labels=np.eye(20, dtype=np.uint8)[:2])
    return buffer.getvalue()


def mxnet() -> bytes:
    """One dense array (2,6,8) called arg:w."""
    array = struct.pack("<IiI3q", 0xF993FAC9, 0, 3, 2, *SIZE) + struct.pack("<iii", 1, 0, 0)
    name = b"arg:w"
    parts = (
        struct.pack("<QQQ", 0x112, 0, 1),
        array,
        VALUES.tobytes(),
        struct.pack("<QQ", 1, 5),
        name,
    )
    return b"".join(parts)


def brush_tasks() -> bytes:
    value = {"brushlabels": ["cat"], "rle": brush_bytes(VALUES[0] > 0.2), "format": "rle"}
    result = [{"type": "brushlabels", "value": value, "original_width": 8, "original_height": 6}]
    task = {"data": {"image": "/data/a.jpg"}, "annotations": [{"result": result}]}
    return json.dumps([task]).encode()


def run_settings() -> bytes:
    settings = as_json(Training(Classifier("tiny", None)))
    record = {"system": "vanilla", "settings": settings, "classes": ["cat", "dog"]}
    return json.dumps(record).encode()


def normalisation() -> bytes:
    inner = {"mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2]}
    return json.dumps({"architecture": "resnet50", "pretrained_cfg": inner}).encode()


def write_stores(folder: Path) -> dict[str, stores.Store]:
    """A store of each kind with a record of the image a."""
    made = {
        holds: stores.create(folder / holds, holds=holds, classes=VOC.names, made_by={})
        for holds in ("scores", "masks", "regions")
    }
    maps = ScoreMaps(VALUES.transpose(1, 2, 0), np.array([4, 7]), SIZE, np.ones(2, np.float32))
    made["scores"].put_scores("a", maps)
    made["masks"].put_mask("a", (VALUES[0] * 7).astype(np.uint8))
    entries = json.loads(region_files()[1])
    regions.put_regions(made["regions"], "a", regions.parsed(entries, "sample", size=SIZE))
    return made
