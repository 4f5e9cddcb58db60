"""Any name of a photograph is found, becomes a safe name on disk, and comes back as it was."""

from pathlib import Path

import pytest

from wsss_jax.data.ids import Index, by_id, disk_name, id_of_disk_name, id_of_name
from wsss_jax.datasets import lists
from wsss_jax.errors import BadFileError

NAMES = (
    "IMG 001", "photo (1)", "Katze_größe", "_lead", "a.b.c", ".hidden", "-dash", "猫", "100%25",
    "it's", 'q"q', "con", "NUL.x", "a" * 300, "ü" * 150, "trailing ", "~x", "a\u202eb", "a|b",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_names_on_disk_are_safe_and_reversible(name):
    found = disk_name(name)
    assert id_of_disk_name(found) == name
    for part in found.split("/"):
        assert len(part.encode()) <= 181 and part.split(".")[0].lower() not in ("con", "nul")
        assert part[0] not in ".-~ " and not set(part) & set('\\:*?"<>|\n')


def test_usual_names_stay_as_they_are():
    for name in ("2007_000032", "IMG 001", "Katze_größe", "a.b.c", "photo (1)"):
        assert disk_name(name) == name
    assert disk_name("front/001") == "front%2F001" and disk_name("../x") == "%2E.%2Fx"


def test_bytes_that_are_no_text_have_a_name_too():
    assert id_of_name("\udce4b\n") == "%E4b%0A" and id_of_name("u\u0308") == "ü"


def files(*names: str) -> dict[str, tuple[Path, ...]]:
    return by_id(Path("/d"), (Path("/d", name) for name in names))


def test_folders_come_with_a_name_only_where_it_is_not_alone():
    assert list(files("a/1.jpg", "b/1.jpg", "b/2.jpg")) == ["a/1", "b/1", "2"]
    assert len(files("1.jpg", "1.png")["1"]) == 2


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("im0", "im0"), ("im0.jpg", "im0"), ("IM0.JPG", "im0"), ("./x/im0.jpg", "im0"),
     ("C:\\pictures\\im0.jpg", "im0"), ('"im0.jpg"', "im0"), ("/JPEGImages/im0.jpg", "im0"),
     ("a/1.jpg", "a/1"), ("1", None), ("nobody", None), ("IMG 001.jpg", "IMG 001"),
     ("a.b.c", "a.b.c"), ("a.b.c.jpg", "a.b.c"), ("gro\u0308ße", "größe")],
)  # fmt: skip
def test_a_file_is_meant_with_or_without_suffix_and_folders(text, wanted):
    names = ("im0.jpg", "a/1.jpg", "b/1.jpg", "IMG 001.jpg", "a.b.c.jpg", "größe.jpg")
    assert Index(files(*names)).find(text) == wanted


def test_lines_of_lists_may_have_further_columns(tmp_path):
    index = Index(files("im0.jpg", "IMG 001.jpg"))
    path = tmp_path / "Train.txt"
    path.write_text("/JPEGImages/im0.jpg /SegmentationClassAug/im0.png\nIMG 001 -1\n")
    assert lists.ids_of(path, index) == ("im0", "IMG 001")
    (tmp_path / "LICENSE.txt").write_text("no list")
    assert lists.list_files(tmp_path) == {"train": path}
    (tmp_path / "train.txt").write_text("im0\n")
    with pytest.raises(BadFileError, match=r"Train\.txt and train\.txt"):
        lists.list_files(tmp_path)
