"""PASCAL VOC on disk, and data of one's own in its folders: classes are read from what is there."""

from collections.abc import Mapping
from pathlib import Path

from wsss_jax.data.classes import VOC, ClassList
from wsss_jax.data.ids import by_id, files_below, pictures
from wsss_jax.data.mask_files import SUFFIXES
from wsss_jax.datasets import folders, labels, lists
from wsss_jax.datasets.labels import LabelTable
from wsss_jax.datasets.source import Source, masks_of
from wsss_jax.errors import BadFileError, MissingFileError

MASKS = ("SegmentationClassAug", "SegmentationClass")
AUGMENTED = "train_aug"


def voc(
    root: Path, split: str, *, ids: tuple[str, ...] | None = None, lists: Path | None = None
) -> Source:
    """PASCAL VOC: JPEGImages, SegmentationClassAug or SegmentationClass, ImageSets.

    Image-level labels come from image_labels.json, cls_labels.npz or cls_labels.npy (in ``root`` or
    in ``lists``), else Annotations/, else the class lists of ImageSets/Main. Classes are those of
    class_names.txt where there is one, else those that occur. ids: these images instead of the
    split's. lists: a folder of other lists, such as train_aug.txt. Raises BadFileError.
    """
    root = voc_root(root)
    masks = _masks(root)
    table = _labels(root, lists, has_masks=bool(masks))
    images = pictures(root / "JPEGImages")
    files = list_files(root, lists)
    if ids is None:
        _check_augmented(root, split, files)
    return folders.made(
        root,
        split,
        images,
        table,
        ids=ids,
        lists=files,
        masks=masks_of(masks, images),
    )


def voc_root(root: Path) -> Path:
    """The folder that holds JPEGImages: ``root``, a VOC20xx in it, or one below VOCdevkit."""
    tries = (root, root / "VOC2012", root / "VOCdevkit" / "VOC2012", *sorted(root.glob("VOC2*")))
    return next((path for path in tries if (path / "JPEGImages").is_dir()), root)


def list_files(root: Path, given: Path | None = None) -> dict[str, Path]:
    """Lists by split: in ``given``, else ImageSets/Segmentation, else ImageSets/Main."""
    if given is not None:
        return lists.given_lists(given)
    sets = voc_root(root) / "ImageSets"
    return lists.list_files(sets / "Segmentation") or _main(sets / "Main")[0]


def _check_augmented(root: Path, split: str, files: Mapping[str, Path]) -> None:
    """MissingFileError that tells where ``train_aug`` comes from, where it is wanting."""
    if split.lower() != AUGMENTED or AUGMENTED in files:
        return
    instead = ""
    if "train" in files:
        instead = f"; or take the list train: {len(lists.read_list(files['train'])):,} images"
    raise MissingFileError(
        f"{root}: no list {AUGMENTED}.txt. It is no part of the devkit, its photographs are: VOC's "
        "own and those of SBD (Hariharan et al. 2011), 10,582 images. Copy it from IRN's code, "
        "https://github.com/jiwoon-ahn/irn/blob/master/voc12/train_aug.txt, into "
        f"ImageSets/Segmentation{instead}"
    )


def _main(folder: Path) -> tuple[dict[str, Path], dict[str, list[Path]]]:
    """The lists of ImageSets/Main: of all images by split, and by class with -1, 0 and 1."""
    found = lists.list_files(folder)
    plain = {split: path for split, path in found.items() if not _flagged(path)}
    flagged: dict[str, list[Path]] = {}
    for path in (path for split, path in found.items() if split not in plain):
        flagged.setdefault(path.stem.rpartition("_")[0], []).append(path)
    return plain, flagged


def _flagged(path: Path) -> bool:
    first = next(iter(lists.read_list(path)), "")
    return "_" in path.stem and first.split()[-1:] in (["-1"], ["0"], ["1"])


def _main_table(folder: Path, classes: ClassList | None) -> LabelTable | None:
    """Labels from lists of each class, as in ImageSets/Main; None where there are none."""
    _, flagged = _main(folder)
    if not flagged:
        return None
    order = VOC.names if set(flagged) <= set(VOC.names) else tuple(sorted(flagged))
    known = classes or labels.class_list(folder, [name for name in order if name in flagged])
    lines = {
        name: [line.split() for path in paths for line in lists.read_list(path)]
        for name, paths in flagged.items()
    }
    # Of VOC 0 is an object that is difficult, and counts here; others write 0 for -1.
    flags = {words[-1] for own in lines.values() for words in own}
    yes = ("1", "0") if "-1" in flags else ("1",)
    shown: dict[str, dict[str, bool]] = {}
    for name, own in lines.items():
        for words in own:
            shown.setdefault(" ".join(words[:-1]), {})[name] = words[-1] in yes
    entries = {
        id: [name for name in own if own[name]]
        if len(own) == len(flagged)
        else BadFileError(f"{folder}: {id} stands in the lists of some classes only")
        for id, own in shown.items()
    }
    return LabelTable(folder, known, entries)


def _masks(root: Path) -> Mapping[str, tuple[Path, ...]]:
    place = next((root / name for name in MASKS if (root / name).is_dir()), None)
    if place is None:
        return {}
    return by_id(place, (path for path in files_below(place) if path.suffix.lower() in SUFFIXES))


def _labels(root: Path, given: Path | None, *, has_masks: bool) -> LabelTable:
    places = (root,) if given is None else (given, root)
    classes = labels.class_file(*places)
    for folder in places:
        if (folder / "image_labels.json").is_file():
            return labels.json_table(folder / "image_labels.json")
        if (folder / "cls_labels.npz").is_file():
            return labels.npz_table(folder / "cls_labels.npz", classes or VOC)
        for path in sorted(folder.glob("cls_labels*.npy")):
            return labels.npy_table(path, classes)
    if (root / labels.ANNOTATIONS).is_dir():
        return labels.xml_table(root / labels.ANNOTATIONS, classes, masks=has_masks)
    table = _main_table(root / "ImageSets" / "Main", classes)
    if table is None:
        raise BadFileError(
            f"{root}: no image-level labels; wanted Annotations/, cls_labels.npy or .npz, "
            "ImageSets/Main with lists of each class, or image_labels.json"
        )
    return table
