"""Photographs come upright, in 8-bit colour and of a size that can be worked with."""

import numpy as np
import pytest
from PIL import Image

from wsss_jax.data import datasets, photographs
from wsss_jax.data.photographs import decode_image, header, read_image, verify, working_size
from wsss_jax.errors import BadFileError

SCENE = np.zeros((4, 6, 3), np.uint8)
SCENE[0, :, 0] = 250  # red above
SCENE[:, 0, 1] = 250  # green on the left


def stored(path, orientation: int, mode: str = "PNG"):
    """SCENE as a camera stores it that was held so."""
    back = {1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 8, 7: 7, 8: 6}[orientation]
    picture = photographs.turned(Image.fromarray(SCENE), back)
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture.save(path, mode, exif=exif)
    return picture


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["PNG", "TIFF"])
def test_every_orientation_comes_upright(tmp_path, orientation, mode):
    path = tmp_path / "a.png"
    stored(path, orientation, mode)
    assert (read_image(path) == SCENE).all() and photographs.image_size(path) == (4, 6)
    assert (decode_image(path.read_bytes(), "a") == SCENE).all()


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")  # Pillow's, when it opens such a file
def test_damaged_exif_is_no_orientation(tmp_path):
    Image.fromarray(SCENE).save(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0nonsense")
    assert header(tmp_path / "a.jpg", "a").orientation == 1


def test_masks_of_the_raw_size_are_turned_and_upright_ones_are_not(tmp_path):
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    stored(tmp_path / "images/a.png", 6)
    stored(tmp_path / "images/b.png", 6)
    upright = (SCENE[..., 0] > 0).astype(np.uint8)
    raw = np.asarray(photographs.turned(Image.fromarray(upright), 8))
    assert raw.shape == (6, 4)
    Image.fromarray(raw).save(tmp_path / "masks/a.png")
    Image.fromarray(upright).save(tmp_path / "masks/b.png")
    (tmp_path / "labels.csv").write_text("a,cat\nb,cat\n")
    source = datasets.open_dataset(tmp_path, split="all")
    for id in "ab":
        assert (source.mask(id) == upright).all() and source.size(id) == (4, 6)


@pytest.mark.parametrize("suffix", ["bmp", "tif", "webp", "gif", "jpg", "JPEG", "png", "ppm"])
def test_usual_formats_are_read(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    Image.new("RGB", (6, 4), (200, 200, 200)).save(path)
    assert np.abs(read_image(path).astype(int) - 200).max() < 3


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "HSV", "I", "F"])
def test_every_colour_mode_becomes_rgb(tmp_path, mode):
    path = tmp_path / "a.tif"
    Image.fromarray(SCENE).convert(mode if mode != "HSV" else "RGB").save(path)
    assert read_image(path).shape == (4, 6, 3)


def test_palettes_with_transparency_are_read(tmp_path):
    Image.new("P", (6, 4), 1).save(tmp_path / "a.png", transparency=b"\x00\x80")
    assert read_image(tmp_path / "a.png").shape == (4, 6, 3)


def test_16_bits_are_scaled_and_not_clipped(tmp_path):
    values = np.linspace(0, 65535, 24).astype(np.uint16).reshape(4, 6)
    for suffix in ("png", "tif"):
        Image.fromarray(values).save(tmp_path / f"a.{suffix}")
        assert (read_image(tmp_path / f"a.{suffix}")[..., 0] == values // 257).all()
    Image.fromarray(np.linspace(0, 1, 24, dtype=np.float32).reshape(4, 6)).save(tmp_path / "f.tif")
    assert read_image(tmp_path / "f.tif").max() == 255
    Image.fromarray(np.full((4, 6), -3, np.int32)).save(tmp_path / "n.tif")
    with pytest.raises(BadFileError, match="grey values"):
        read_image(tmp_path / "n.tif")


def test_large_photographs_are_reduced_and_tell_their_full_size(tmp_path):
    path = tmp_path / "a.jpg"
    Image.new("RGB", (2400, 1600), (10, 200, 30)).save(path)
    pixels = read_image(path)
    assert pixels.shape[:2] == working_size((1600, 2400)) == (836, 1254)
    assert photographs.image_size(path) == (1600, 2400)
    assert decode_image(path, "a", whole=True).shape == (1600, 2400, 3)
    assert np.abs(pixels.reshape(-1, 3).mean(0) - (10, 200, 30)).max() < 3


def test_working_sizes_are_bounded_and_keep_the_form():
    assert working_size((1, 1)) == (1, 1) and working_size((1024, 1024)) == (1024, 1024)
    height, width = working_size((10_000, 10_000))
    assert height == width and height * width <= photographs.WORKING_PIXELS * 1.01
    assert max(working_size((1, 100_000_000))) <= photographs.WORKING_SIDE


def test_what_is_cut_off_is_found_at_every_size(tmp_path, monkeypatch):
    noise = np.random.default_rng(0).integers(0, 256, (60, 60, 3), np.uint8)
    for limit in (photographs.VERIFIED, 10):
        monkeypatch.setattr(photographs, "VERIFIED", limit)
        for suffix in ("jpg", "png", "webp"):
            path = tmp_path / f"a.{suffix}"
            Image.fromarray(noise).save(path)
            assert verify(path, "a").raw == (60, 60)
            path.write_bytes(path.read_bytes()[:-300])
            with pytest.raises(BadFileError, match=r"damaged|not a picture"):
                verify(path, "a")
