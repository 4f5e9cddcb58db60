import numpy as np
import pytest
from PIL import Image

from wsss_jax.batches import augment as module
from wsss_jax.batches.augment import OPERATIONS, Augmentation, augment
from wsss_jax.types import IGNORE, Sample

STILL = Augmentation(
    crop=32, long_side=(32, 32), flip=0.0, brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0
)


def still(**changes):
    return Augmentation(**{**vars(STILL), **changes})


def sample(height=24, width=32):
    """Left third red, the rest blue, with the mask that says so."""
    image = np.zeros((height, width, 3), np.uint8)
    mask = np.zeros((height, width), np.uint8)
    mask[:, : width // 3] = 1
    image[..., 0] = 200 * mask
    image[..., 2] = 200 * (1 - mask)
    return Sample("a", image, np.array([True, False]), mask)


def generator(seed=0):
    return np.random.default_rng(seed)


def test_nothing_happens_when_all_is_off():
    given = sample(32, 32)
    view = augment(given, STILL, generator())
    np.testing.assert_array_equal(view.image, given.image)
    np.testing.assert_array_equal(view.mask, given.mask)
    assert view.inside.all()


def test_a_small_image_lies_whole_at_a_random_place_among_ignored_pixels():
    given = sample(24, 32)
    tops = set()
    for seed in range(12):
        view = augment(given, STILL, generator(seed))
        rows = np.flatnonzero(view.inside.any(1))
        tops.add(int(rows[0]))
        assert view.inside.sum() == 24 * 32
        np.testing.assert_array_equal(view.image[view.inside].reshape(24, 32, 3), given.image)
        assert (view.image[~view.inside] == 0).all()
        assert (view.mask[~view.inside] == IGNORE).all()
    assert len(tops) > 3


def test_a_large_image_is_cropped_and_the_mask_with_it():
    given = sample(40, 64)
    view = augment(given, still(long_side=(64, 64)), generator(3))
    assert view.image.shape == (32, 32, 3) and view.inside.all()
    np.testing.assert_array_equal(view.mask == 1, view.image[..., 0] > 100)


def test_the_flip_mirrors_image_and_mask():
    given = sample(32, 32)
    view = augment(given, still(flip=1.0), generator())
    np.testing.assert_array_equal(view.image, given.image[:, ::-1])
    np.testing.assert_array_equal(view.mask, given.mask[:, ::-1])


def test_the_long_side_is_drawn_between_its_bounds():
    widths = {
        int(augment(sample(24, 32), still(long_side=(16, 30)), generator(s)).inside.any(0).sum())
        for s in range(60)
    }
    assert min(widths) >= 16 and max(widths) <= 30 and len(widths) > 8


def test_the_same_generator_state_gives_the_same_view():
    settings = Augmentation(crop=32, long_side=(20, 50), operations=2)
    first, again, other = (augment(sample(), settings, generator(s)) for s in (5, 5, 6))
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.mask, again.mask)
    assert (first.image != other.image).any()


def test_brightness_contrast_and_saturation_blend_as_torchvision_does():
    picture = Image.fromarray(generator().integers(0, 256, (8, 8, 3)).astype(np.uint8))
    pixels = np.asarray(picture).astype(float)
    grey = np.asarray(picture.convert("L")).astype(float)
    for adjust, other in (
        (module.brightness, 0),
        (module.contrast, int(grey.mean() + 0.5)),
        (module.colour, grey[..., None]),
    ):
        wanted = np.clip(1.2 * pixels - 0.2 * other, 0, 255)
        np.testing.assert_allclose(np.asarray(adjust(picture, 1.2)), wanted, atol=1)


def test_a_third_of_the_hue_circle_turns_red_to_green_and_back():
    red = Image.new("RGB", (2, 2), (255, 0, 0))
    for turns, wanted in ((1 / 3, (0, 255, 0)), (-1 / 3, (0, 0, 255))):
        # Pillow keeps hues in 256 steps, so a turn is exact to one of them (6 of 255).
        np.testing.assert_allclose(np.asarray(module.hue(red, turns))[0, 0], wanted, atol=6)


def test_jitter_stays_within_its_factors():
    picture = Image.new("RGB", (4, 4), (100, 100, 100))
    settings = still(brightness=0.3)
    seen = [
        np.asarray(module.colour_jitter(picture, settings, generator(s)))[0, 0, 0]
        for s in range(40)
    ]
    assert 70 <= min(seen) < 85 and 115 < max(seen) <= 130


def test_the_pool_has_the_fourteen_operations_of_fixmatch():
    assert len(OPERATIONS) == 14
    strengths = {name: module._strength(op, 9) for name, op in OPERATIONS.items()}
    assert strengths["posterize"] == 7 and strengths["solarize"] == 230
    assert strengths["rotate"] == 27
    assert strengths["brightness"] == pytest.approx(0.86)
    assert strengths["shear_x"] == pytest.approx(0.27)
    assert module._strength(OPERATIONS["posterize"], 1) == 4


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_keeps_size_and_mode(name):
    operation = OPERATIONS[name]
    picture = Image.fromarray(sample().image)
    strength = module._strength(operation, 9)
    done = operation.apply(picture, strength, *([(0, 0, 0)] if operation.geometric else []))
    assert done.size == picture.size and done.mode == "RGB"


def test_translation_moves_image_and_mask_alike_and_ignores_what_it_uncovers():
    given = sample(30, 30)
    image = module.translate_x(Image.fromarray(given.image), 0.2, (0, 0, 0))
    mask = np.asarray(module.translate_x(Image.fromarray(given.mask), 0.2, IGNORE))
    np.testing.assert_array_equal(np.asarray(image)[:, :24], given.image[:, 6:])
    assert (np.asarray(image)[:, 24:] == 0).all() and (mask[:, 24:] == IGNORE).all()
    np.testing.assert_array_equal(mask[:, :24], given.mask[:, 6:])


def test_the_cutout_is_a_black_square_that_is_always_there():
    white = Image.new("RGB", (64, 64), (255, 255, 255))
    areas = [
        int((np.asarray(module.cutout(white, 16, generator(s))) == 0).all(-1).sum())
        for s in range(30)
    ]
    assert max(areas) == 256 and min(areas) > 0


def test_rand_augment_leaves_the_mask_aligned():
    given = sample(48, 48)
    settings = still(crop=48, long_side=(48, 48), operations=2, cutout=0)
    seen = 0
    for seed in range(25):
        view = augment(given, settings, generator(seed))
        seen += int((view.mask == IGNORE).any())
        assert set(np.unique(view.mask)) <= {0, 1, IGNORE}
        black = (view.image == 0).all(-1)
        assert (black | (view.mask != IGNORE)).mean() > 0.97  # colour steps may lighten the fill
    assert seen > 3


@pytest.mark.parametrize(
    "wrong",
    [{"crop": 0}, {"long_side": (50, 20)}, {"flip": 2.0}, {"hue": 0.7}, {"magnitude": 1},
     {"contrast": -1.0}],
)  # fmt: skip
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Augmentation(**wrong)
