"""``wsss export``: masks, score maps and networks in the layouts that other programs read.

Formats of masks take score maps, too: they are cut at a threshold first, as ``wsss masks`` does.
An export is written again whenever it is asked for; only a folder that holds anything else is
refused.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

import tyro

from wsss_jax.config import as_json, lookup
from wsss_jax.data.classes import ClassList
from wsss_jax.data.files import write_atomic
from wsss_jax.data.stores import Store, open_store
from wsss_jax.datasets.table import ALL, Source, open_dataset
from wsss_jax.errors import BadFileError, UserError, first_few
from wsss_jax.export import exported
from wsss_jax.export.exported import LOCAL_FILES, RECORD, Options, Picture
from wsss_jax.export.writers import WRITERS, Writer
from wsss_jax.run.executors import Workers
from wsss_jax.run.images import Tally, each, record_skipped
from wsss_jax.run.thresholds import label_free_threshold
from wsss_jax.stages.masks import Masking, mask_of

ONNX = "onnx"
"""The format of networks (``export_onnx``); all others are of stores."""


@dataclass(frozen=True)
class Export:
    """What is written, and how.

    Attributes:
        format: png, png-grey, overlay, coco, yolo, label-studio or cvat for masks; irn, psa,
            psa-crf or npz for score maps; onnx for the network of a run.
        threshold: where score maps become masks, as in `wsss masks`.
        objects: for coco: "region" makes each connected region of a class an object, "class" all
            pixels of a class in a photograph.
        smallest: for coco and yolo: pixels of the smallest region that becomes an object.
        image_url: for label-studio: text before the file names of photographs.
        size: for onnx: height and width of the images that the network takes, in pixels.
    """

    format: Annotated[str, tyro.conf.arg(aliases=["--as"])] = "png"
    threshold: float | Literal["otsu"] = "otsu"
    objects: Literal["region", "class"] = "region"
    smallest: int = 1
    image_url: str = LOCAL_FILES
    size: tuple[int, int] = (320, 320)

    def __post_init__(self) -> None:
        lookup(dict.fromkeys((*WRITERS, ONNX)), self.format, "export format")
        Masking(self.threshold)
        self.options()

    def options(self) -> Options:
        """What the writers need of it."""
        return Options(self.objects, self.smallest, self.image_url)


def command(
    store: tyro.conf.Positional[Path],
    out: Path,
    data: Path | None = None,
    settings: Annotated[Export, tyro.conf.arg(name="")] = Export(),
    layout: str = "auto",
    split: str = ALL,
    lists: Path | None = None,
    workers: Workers = Workers(),  # noqa: B008
) -> None:
    """Write masks or score maps for other programs: PNG, COCO, YOLO, Label Studio, CVAT, IRN, PSA.

    With --format onnx, write the network of a finished run of `wsss train` or `wsss segment`.

    Args:
        store: store of masks or score maps; for onnx, the folder of the run.
        out: folder to write; for onnx, the file.
        data: folder of the data set that masks or score maps belong to.
        settings: the format.
        layout: of the data set; "auto" recognises it from the files.
        split: one of the data set's lists (train, val …), or "all".
        lists: folder of id lists, if they lie elsewhere.
        workers: processes and shards.
    """
    if settings.format == ONNX:
        # Not above: it imports jax, which stores and help do without.
        from wsss_jax.stages.parts.export_onnx import write_onnx

        difference = write_onnx(store, out, settings.size)
        print(f"{out}: outputs differ from the network's by {difference:.1e} at most")
        return
    if (store / "settings.json").is_file():
        raise UserError(f"{store} is a run; its network is exported with --format onnx")
    if data is None:
        raise UserError("give --data, the data set that the masks or score maps belong to")
    source = open_dataset(data, split=split, layout=layout, lists=lists)
    opened = open_store(store)
    export(opened, source, out, settings, workers=workers)
    print(f"{out}: {WRITERS[settings.format].advice}")


def export(
    store: Store,
    source: Source,
    folder: Path,
    settings: Export,
    *,
    workers: Workers | None = None,
) -> Tally:
    """Write the images of ``source`` that ``store`` has into ``folder``.

    Images whose record or photograph cannot be used are left out and listed in skipped.json. Raises
    UserError for a format that the store cannot give, for a folder that holds something else, and
    for a share of a job array where a format has one file for all images.
    """
    writer = lookup(WRITERS, settings.format, "export format of stores")
    workers = workers or Workers()
    settings = _decided(store, writer, settings)
    share = workers.share_number()
    if writer.whole is not None and share[1] > 1:
        raise UserError(f"{settings.format} is one file for all images; export without shards")
    ids = _ids(store, source)
    claim(folder, store, settings)
    names = exported.photograph_names(source, ids)
    function = partial(
        _write_one,
        store=store,
        source=source,
        folder=folder,
        settings=settings,
        names=names,
        numbers={id: number for number, id in enumerate(ids, start=1)},
    )
    noted: dict[str, tuple[object, int]] = {}
    tally = each(
        f"export {settings.format}", function, ids, workers=workers, collect=noted.__setitem__
    )
    tally.report(folder.name)
    record_skipped(folder, tally)
    if tally.skipped and not noted:
        id, reason = min(tally.skipped.items())
        raise BadFileError(f"all {len(tally.skipped)} images failed, first {id}: {reason}")
    if writer.whole is not None:
        notes = [noted[id][0] for id in ids if id in noted]
        _write(folder, writer.whole(notes, ClassList(store.classes)))
    small = sum(count for _, count in noted.values())
    if small:
        print(f"{folder.name}: {small} regions below {settings.smallest} pixels are no objects")
    return tally


def claim(folder: Path, store: Store, settings: Export) -> None:
    """Note in the folder what is exported there. UserError where it holds anything else."""
    made_by = {"format": settings.format, "from": store.folder.name, "made_by": store.made_by}
    content = json.dumps(as_json(made_by), indent=1, sort_keys=True).encode()
    path = folder / RECORD
    held = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    if held and not (path.is_file() and path.read_bytes() == content):
        what = "another export" if path.is_file() else first_few(sorted(held))
        raise UserError(f"{folder} holds {what}; choose an empty folder or delete it")
    write_atomic(path, content)


def _decided(store: Store, writer: Writer, settings: Export) -> Export:
    """Settings with a number for threshold where score maps become masks."""
    if writer.holds == "scores" and store.holds == "masks":
        made = [name for name, one in WRITERS.items() if one.holds == "masks"]
        raise UserError(
            f"{store.folder} holds masks; {settings.format} wants score maps. Formats of masks: "
            + ", ".join(made)
        )
    if store.holds == "regions":
        raise UserError(f"{store.folder} holds regions; export masks or score maps made with them")
    if store.holds == "scores" and store.kind == "logit":
        raise UserError(f"{store.folder} holds logits or features, which no other program reads")
    if writer.kind is not None and store.kind != writer.kind:
        raise UserError(
            f"{store.folder} holds {store.kind} scores, which leave no share for background; "
            f"{settings.format} wants what `wsss refine --method crf` or the combiner gives"
        )
    if store.holds == "masks" or writer.holds == "scores" or settings.threshold != "otsu":
        return settings
    found = 0.5 if store.kind == "probability" else label_free_threshold(store, store.ids())
    if found is None:
        raise UserError(f"{store.folder}: all scores are the same; give --threshold a number")
    return replace(settings, threshold=round(found, 2))


def _ids(store: Store, source: Source) -> tuple[str, ...]:
    """Images that both have, in the order of the data set; what only one has is counted."""
    held = set(store.ids())
    ids = tuple(id for id in source.ids if id in held)
    if not ids:
        raise UserError(f"{store.folder} and {source.name} have no image in common")
    foreign, lacking = len(held) - len(ids), len(source.ids) - len(ids)
    if lacking:
        print(f"{lacking} of {len(source.ids)} photographs have no record in {store.folder.name}")
    if foreign:
        print(f"{foreign} records of {store.folder.name} are of no photograph of {source.name}")
    return ids


def _write_one(
    id: str,
    *,
    store: Store,
    source: Source,
    folder: Path,
    settings: Export,
    names: dict[str, PurePosixPath],
    numbers: dict[str, int],
) -> tuple[object, int]:
    """Write one image's files; what the format notes of it, and how many regions were left out."""
    writer = WRITERS[settings.format]
    if id not in names:
        raise BadFileError(f"no photograph of {id}")
    mask, maps = None, None
    if store.holds == "masks":
        mask = store.get_mask(id)
    else:
        maps = store.get_scores(id)
        if writer.holds == "masks":
            mask, maps = mask_of(maps, Masking(settings.threshold)), None
    size = source.size(id)
    found = maps.size if maps is not None else mask.shape if mask is not None else None
    if found != size:
        raise BadFileError(
            f"{store.folder}: {id}: made for a photograph of {found}, this has {size}"
        )
    picture = Picture(
        id=id,
        number=numbers[id],
        name=names[id],
        stem=exported.stem_of(id),
        size=size,
        classes=ClassList(store.classes),
        source=source,
        mask=mask,
        maps=maps,
    )
    written = writer.one(picture, settings.options())
    _write(folder, written.files)
    return written.note, written.left_out


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        write_atomic(folder / name, content)
