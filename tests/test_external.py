"""Other tools' files come as score maps with the right range, size and kind."""

import numpy as np
import pytest
from PIL import Image

from wsss_jax.data import external
from wsss_jax.data.classes import VOC
from wsss_jax.data.files import BadFileError, MissingFileError


def test_saliency_is_read_as_probabilities_of_one_class(tmp_path):
    values = np.array([[0, 51], [102, 204]], np.uint8)
    Image.fromarray(values).save(tmp_path / "a.png")
    maps = external.read_prior("saliency_png", tmp_path, "a", classes=VOC, size=(30, 40))
    assert maps.kind == "probability" and maps.size == (30, 40)
    assert maps.scores.shape == (2, 2, 1) and maps.classes.tolist() == [0]
    np.testing.assert_allclose(maps.scores[..., 0], [[0, 0.2], [0.4, 0.8]], rtol=1e-6)
    np.testing.assert_allclose(maps.peak, [0.8], rtol=1e-6)


def test_colour_damage_and_absence_are_named(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "rgb.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "rgb.png").read_bytes()[:30])
    for id, error in (("rgb", BadFileError), ("cut", BadFileError), ("gone", MissingFileError)):
        with pytest.raises(error, match=id):
            external.read_prior("saliency_png", tmp_path, id, classes=VOC, size=(4, 4))
    with pytest.raises(ValueError, match="usable as a file name"):
        external.read_prior("saliency_png", tmp_path, "../x", classes=VOC, size=(4, 4))
    with pytest.raises(ValueError, match="did you mean 'saliency_png'"):
        external.read_prior("saliency", tmp_path, "a", classes=VOC, size=(4, 4))


@pytest.mark.parametrize("reader", sorted(external.READERS))
def test_every_reader_refuses_what_is_no_such_file(tmp_path, reader):
    (tmp_path / "a.png").write_bytes(b"nonsense")
    with pytest.raises(BadFileError):
        external.READERS[reader](tmp_path / "a.png", VOC, (4, 4))


def test_real_saliency_keeps_its_own_grid(shared):
    root = shared / "data/voc12_animals/saliency_csnet"
    id = min(root.glob("*.png")).stem
    maps = external.read_prior("saliency_png", root, id, classes=VOC, size=(375, 500))
    assert maps.scores.shape == (224, 224, 1) and 0.5 < maps.peak[0] <= 1
