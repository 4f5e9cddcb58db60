"""Data sets in folders: a folder of photographs with a table of labels, and a folder per class."""

import hashlib
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from wsss_jax.data.ids import PHOTOGRAPHS, Files, Index, by_id, files_below, pictures
from wsss_jax.data.mask_files import SUFFIXES, TABLES, colour_table
from wsss_jax.datasets import box_tables, cells, labels, lists
from wsss_jax.datasets.labels import LabelTable
from wsss_jax.datasets.source import PictureFolder, Source, masks_of
from wsss_jax.datasets.tables import text_table
from wsss_jax.errors import BadFileError, first_few
from wsss_jax.formats.bounded import read_bytes

ALL = "all"
"""The split of every image that any list names, or of every image where there are no lists."""

_IMAGES = ("images", "photographs", "photos", "pictures", "img", "imgs", "jpegimages")
_MASKS = ("masks", "mask", "segmentationclass", "gt", "ground_truth", "groundtruth")
_OTHERS = frozenset({*_MASKS, "saliency", "splits", "lists", "annotations", "labels"})
_SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "test": "test",
           "validation": "val"}  # fmt: skip
_LISTED = frozenset({*_SPLITS, "trainval"})
_JSON = ("labels.json", "image_labels.json")
_ARRAYS = (".npy", ".npz", ".mat")
_DATA = frozenset({".txt", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".yaml", ".yml", ".npy",
                   ".xlsx", ".xls", ".ods", ".numbers"})  # fmt: skip
_SHEETS = frozenset({".xlsx", ".xls", ".ods", ".numbers"})


def folder(
    root: Path, split: str, *, ids: tuple[str, ...] | None = None, lists: Path | None = None
) -> Source:
    """A folder of photographs and one table of labels, and ``masks/`` where there is truth.

    Photographs lie in ``images/`` or in ``root`` itself, with folders or without. Labels are
    ``labels.json`` (``labels.json_table``), or a table in a ``.csv``, ``.tsv`` or ``.txt`` file
    (``tables``). Splits are ``splits/<name>.txt``; without lists, "val" is every fifth image by the
    hash of its id and "train" the others. ids: these images instead of the split's. lists: another
    folder of lists. Raises BadFileError.
    """
    images, index = _photographs(root)
    table = _table(root, index)
    if table is None:
        raise BadFileError(
            f"{root}: no labels; wanted labels.csv with rows like {next(iter(images), 'im0')},cat, "
            f"or labels.json{_nearly_a_table(root)}"
        )
    return made(root, split, images, table, ids=ids, lists=list_files(root, lists))


def class_folders(root: Path, split: str, *, ids: tuple[str, ...] | None = None) -> Source:
    """A folder per class, as torchvision's ImageFolder: ``cat/a.jpg``, ``dog/b.jpg``.

    A class has all photographs below its folder. One photograph in several folders, of the same
    name and content, shows all of these classes; those in a folder ``background`` or ``none`` show
    none.
    Where the folders are ``train`` and ``val`` (or ``valid``, ``test``) with classes inside, these
    are the splits, else they are as in ``folder``. Raises BadFileError.
    """
    place = _class_root(root)
    parts = _split_folders(place)
    level = 1 + bool(parts)
    inside = ((p, p.relative_to(place).parts) for p in files_below(place))
    paths = [
        path
        for path, above in inside
        if path.suffix.lower() in PHOTOGRAPHS and len(above) > level
        if above[0].lower() not in _OTHERS
    ]
    images, names = _joined(place, paths, level - 1)
    known = labels.class_file(root, place)
    spelled = cells.spelling_of(names, () if known is None else known.names)
    kept = sorted({n for f, n in spelled.items() if f not in cells.NONE}, key=str.casefold)
    _check_classes(root, kept, parts)
    entries = {
        id: [spelled[name.casefold()] for name in own if spelled[name.casefold()] in kept]
        for id, own in names.items()
    }
    others = sorted({name for own in names.values() for name in own} - set(spelled.values()))
    notes = (
        f"classes are folders: {', '.join(kept)}",
        *(f"folder {name} is read as {spelled[name.casefold()]}" for name in others),
    )
    table = LabelTable(root, known or labels.class_list(root, kept), entries, notes=notes)
    if not parts:
        return made(root, split, images, table, ids=ids, lists=list_files(root))
    chosen = _splits_of(place, parts, images)
    name = lists.split_named(split, {**chosen, ALL: ()})
    if ids is None and name is None:
        raise BadFileError(f"{root}: no split {split!r} (there are: {', '.join(chosen)}, {ALL})")
    if ids is None:
        ids = tuple(images) if name == ALL else chosen[str(name)]
    return PictureFolder(root.name, root, ids, images, _masks(root, images), table)


def _check_classes(root: Path, names: list[str], parts: list[str]) -> None:
    """BadFileError where the folders of photographs are not named after classes."""
    texts = (path.relative_to(root) for path in files_below(root) if path.suffix == ".txt")
    boxes = next((path for path in texts if "labels" in path.parts[:-1]), None)
    if boxes is not None and {name.lower() for name in names} <= {*_IMAGES, *_SPLITS}:
        raise BadFileError(
            f"{root}: {boxes} is a list of boxes (YOLO), which is not read; write labels.csv with "
            "rows like im0.jpg,cat;dog, or export the boxes as COCO"
        )
    if not names:
        below = [p for p in files_below(root) if p.suffix.lower() in (".csv", ".json")]
        hint = f"; move {below[0].relative_to(root)} into {root}" if below else ""
        raise BadFileError(
            f"{root}: photographs lie in {' and '.join(parts) or 'folders of no class'}, without a "
            f"folder for each class and without a table of labels; wanted labels.csv{hint}"
        )


def splits_in_folders(root: Path) -> tuple[str, ...]:
    """Splits of ``class_folders`` that are folders, none where it has no such folders."""
    place = _class_root(root)
    return tuple(sorted({_SPLITS[part] for part in _split_folders(place)}))


def has_table(root: Path) -> bool:
    """Whether a table of labels lies in a folder, or in its folder of photographs."""
    return _table_file(root) is not None


def has_class_folders(root: Path) -> bool:
    """Whether photographs lie in folders of ``root``, or of its folder of photographs."""
    place = _class_root(root)
    return any(
        path.suffix.lower() in PHOTOGRAPHS
        for inner in sorted(place.iterdir())
        if inner.is_dir() and inner.name.lower() not in _OTHERS
        for path in files_below(inner)
    )


def image_folder(root: Path) -> Path | None:
    """The folder that holds the photographs, in whatever capitals; None where there is none."""
    inner = {path.name.lower(): path for path in sorted(root.iterdir()) if path.is_dir()}
    return next((inner[name] for name in _IMAGES if name in inner), None)


def list_files(root: Path, given: Path | None = None) -> dict[str, Path]:
    """Lists by split: in ``given``, else in ``splits/`` or ``lists/``, else beside them."""
    if given is not None:
        return lists.given_lists(given)
    inner = {path.name.lower(): path for path in sorted(root.iterdir()) if path.is_dir()}
    place = next((inner[name] for name in ("splits", "lists") if name in inner), None)
    if place is not None:
        return lists.list_files(place)
    found = lists.list_files(root, (".txt",))  # other files there may be tables of labels
    return {name: path for name, path in found.items() if name.split("_")[0] in _LISTED}


def made(
    root: Path,
    split: str,
    images: Files,
    table: LabelTable,
    *,
    ids: tuple[str, ...] | None,
    lists: dict[str, Path],
    masks: Files | None = None,
) -> PictureFolder:
    """The source of these photographs and labels; ids: else those that the split tells."""
    matched = table.matched(Index(images))
    if ids is None:
        ids = chosen_ids(root, split, lists_by_split=lists, images=images, table=matched)
    found = _masks(root, images) if masks is None else masks
    places = (root, *(paths[0].parent for paths in list(found.values())[:1]))
    colours = colour_table(places[::-1], table.classes) if found else None
    return PictureFolder(root.name, root, ids, images, found, matched, colours)


def chosen_ids(
    root: Path, split: str, *, lists_by_split: dict[str, Path], images: Files, table: LabelTable
) -> tuple[str, ...]:
    """Ids of a split: of its list, else of all images and labels. Raises BadFileError."""
    shared = [images[id] for id in table.twice if len(images.get(id, ())) > 1]
    if shared:
        names = " and ".join(path.name for path in shared[0])
        raise BadFileError(f"{root}: {names} differ in their suffix alone; rename or delete one")
    if table.twice:
        some = first_few(table.twice)
        raise BadFileError(f"{table.path}: {some}: labels stand in it twice; keep one of them")
    index = Index(images)
    if split == ALL and lists_by_split:
        found = (id for path in lists_by_split.values() for id in lists.ids_of(path, index))
        return tuple(dict.fromkeys(found))
    name = lists.split_named(split, lists_by_split)
    if name is not None:
        return lists.ids_of(lists_by_split[name], index)
    everything = lists.checked_ids(known_ids(images, table), root)
    if split == ALL:
        return everything
    if lists_by_split or split.lower() not in ("train", "val"):
        known = ", ".join([*sorted(lists_by_split or ("train", "val")), ALL])
        raise BadFileError(f"{root}: no split {split!r} (there are: {known})")
    held_out = _held_out(everything)
    return tuple(id for id in everything if (id in held_out) == (split.lower() == "val"))


def known_ids(images: Files, table: LabelTable) -> tuple[str, ...]:
    """Every id that has an image or labels, sorted: what there is where there are no lists."""
    return tuple(sorted({*images, *table.entries}))


def stray_masks(root: Path, images: Files, table: LabelTable) -> tuple[Path, ...]:
    """Masks that are named like no photograph and no label, and so are truth of nothing."""
    found = [
        path
        for folder in _mask_folders(root)
        for path in files_below(folder)
        if path.suffix.lower() in (*SUFFIXES, *_ARRAYS)
    ]
    used = {path for paths in _masks(root, images).values() for path in paths}
    named = {p for p in found if p.stem in table.entries and p.suffix.lower() in SUFFIXES}
    return tuple(p for p in found if p not in used and p not in named)


def unread_files(root: Path) -> list[Path]:
    """Files of lists, labels and the like in a data set in folders that nothing reads."""
    if any(path.name == "JPEGImages" for path in root.iterdir()):
        return []
    known = {*TABLES, *labels.CLASS_FILES}
    used = {_table_file(root), *list_files(root).values(), root / box_tables.NAME}
    inner = [p for p in root.iterdir() if p.is_dir() and p.name.lower() in ("splits", "lists")]
    return [
        path
        for folder in (root, *inner)
        for path in sorted(folder.iterdir())
        if path.suffix.lower() in _DATA and path.is_file() and path not in used
        if path.name not in known and path.name[:1] not in (".", "~")
        if not lists.NO_LIST.fullmatch(path.stem)
    ]


def _held_out(ids: tuple[str, ...]) -> set[str]:
    by_hash = sorted(ids, key=lambda id: hashlib.blake2b(id.encode(), digest_size=8).digest())
    return set(by_hash[: max(1, round(len(ids) / 5))])


def _photographs(root: Path) -> tuple[dict[str, tuple[Path, ...]], Index]:
    place = image_folder(root)
    if place is not None:
        images = pictures(place)
    else:
        inside = (p for p in files_below(root) if p.suffix.lower() in PHOTOGRAPHS)
        first = ((p, p.relative_to(root).parts[0].lower()) for p in inside)
        images = by_id(root, (p for p, name in first if name not in _OTHERS))
    return images, Index(images)


def _table_file(root: Path) -> Path | None:
    """The file of labels. Raises BadFileError where two may be it."""
    place = image_folder(root)
    for folder in (root, place):
        if folder is None:
            continue
        inner = {path.name.lower(): path for path in sorted(folder.iterdir()) if path.is_file()}
        exact = [inner[name] for name in _JSON if name in inner]
        if exact:
            return exact[0]
        tables = [path for path in inner.values() if _is_table(path)]
        tables = [path for path in tables if path.name != box_tables.NAME] or tables
        exact = [path for path in tables if path.stem.lower() == "labels"]
        named = exact or [path for path in tables if "label" in path.stem.lower()] or tables
        if len(named) > 1:
            some = first_few(path.name for path in named)
            raise BadFileError(f"{folder}: which of {some} has the labels? call only it labels.csv")
        if named:
            return named[0]
    return None


def _is_table(path: Path) -> bool:
    if path.name in TABLES or path.name[:1] in (".", "~") or labels.is_class_file(path):
        return False
    suffix = path.suffix.lower()
    return suffix in (".csv", ".tsv") or (suffix == ".txt" and "label" in path.stem.lower())


def _nearly_a_table(root: Path) -> str:
    """A hint at a file that may have the labels but is not read."""
    sheets = [path.name for path in sorted(root.iterdir()) if path.suffix.lower() in _SHEETS]
    if sheets:
        return f"; {sheets[0]} is not read: save it as CSV"
    boxes = next((path for path in files_below(root / "labels") if path.suffix == ".txt"), None)
    if boxes is not None:
        return f"; {boxes.relative_to(root)} is a list of boxes (YOLO), which is not read"
    texts = [path.name for path in unread_files(root) if path.suffix.lower() == ".txt"]
    return f"; if {texts[0]} has the labels, call it labels.txt" if texts else ""


def _table(root: Path, index: Index) -> LabelTable | None:
    path = _table_file(root)
    if path is None:
        return None
    if path.suffix.lower() == ".json":
        return labels.json_table(path)
    return text_table(path, index, labels.class_file(root, path.parent))


def _mask_folders(root: Path) -> list[Path]:
    return [p for p in sorted(root.iterdir()) if p.is_dir() and p.name.lower() in _MASKS]


def _mask_files(folder: Path) -> list[Path]:
    return [path for path in files_below(folder) if path.suffix.lower() in SUFFIXES]


def _masks(root: Path, images: Files) -> dict[str, tuple[Path, ...]]:
    found: dict[str, tuple[Path, ...]] = {}
    for folder in _mask_folders(root)[:1]:
        found = masks_of(by_id(folder, _mask_files(folder)), images)
    return found


def _class_root(root: Path) -> Path:
    return image_folder(root) or root


def _split_folders(place: Path) -> list[str]:
    """Folders that are splits: all that hold photographs are called so, with folders inside."""
    inner = [p for p in sorted(place.iterdir()) if p.is_dir() and p.name.lower() not in _OTHERS]
    inner = [p for p in inner if p.name[:1] != "." and any(True for _ in files_below(p))]
    named = bool(inner) and all(p.name.lower() in _SPLITS for p in inner)
    return [p.name.lower() for p in inner] if named else []


def _joined(
    place: Path, paths: list[Path], level: int
) -> tuple[dict[str, tuple[Path, ...]], dict[str, list[str]]]:
    """Photographs by id, of equal ones the first, and the classes in whose folders they lie."""
    groups: dict[tuple, list[Path]] = {}
    for path in paths:
        inside = path.relative_to(place).parts
        # Only photographs of one name are compared, so few are read.
        groups.setdefault((*inside[:level], path.name), []).append(path)
    same: dict[Path, list[str]] = {}
    for found in groups.values():
        firsts: dict[bytes, Path] = {}
        for path in found:
            name = unicodedata.normalize("NFC", path.relative_to(place).parts[level]).strip()
            content = hashlib.blake2b(read_bytes(path)).digest() if len(found) > 1 else b""
            first = firsts.setdefault(content, path)
            own = same.setdefault(first, [])
            own.extend([name] if name not in own else [])
    images = by_id(place, same)
    return images, {id: [n for path in files for n in same[path]] for id, files in images.items()}


def _splits_of(place: Path, parts: Iterable[str], images: Files) -> dict[str, tuple[str, ...]]:
    chosen: dict[str, tuple[str, ...]] = {_SPLITS[part]: () for part in parts}
    for id, paths in images.items():
        split = _SPLITS[paths[0].relative_to(place).parts[0].lower()]
        chosen[split] = (*chosen[split], id)
    return chosen
