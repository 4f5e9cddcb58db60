"""The world of function: what its pictures tell and what they do not."""

import numpy as np
from scipy.ndimage import minimum_filter

from wsss_jax.data.classes import to_mask_index
from wsss_jax.study import functional_world, world


def test_both_worlds_show_the_same_pictures_and_only_one_tells_balls_from_wheels():
    told, untold = (functional_world.make(40, told=one, seed=3) for one in (True, False))
    np.testing.assert_array_equal(told.images, untold.images)
    np.testing.assert_array_equal(told.masks > 0, untold.masks > 0)
    np.testing.assert_array_equal(told.masks == 3, untold.masks == 3)
    greener = (
        functional_world.context(told.images)[..., 7]
        - functional_world.context(told.images)[..., 6]
    )
    for made, apart in ((told, True), (untold, False)):
        balls, wheels = greener[made.masks == 1], greener[made.masks == 2]
        assert (balls.min() > wheels.max()) == apart
        # But for their rims the discs look the same in both worlds.
        looks = functional_world.local(made.images)
        insides = [minimum_filter(made.masks == value, (1, 7, 7)) for value in (1, 2)]
        np.testing.assert_allclose(*(looks[one].mean(axis=0) for one in insides), atol=0.03)
        np.testing.assert_array_equal(
            made.labels, [np.isin(to_mask_index(np.arange(3)), mask) for mask in made.masks]
        )


def test_a_world_without_systems_is_a_data_set_with_saliency_and_features(tmp_path):
    made = functional_world.make(3, told=True, seed=0)
    source, saliency = world.pictures(made, tmp_path, functional_world.CLASSES)
    store = world.frozen(tmp_path, "context", functional_world.context(made.images))
    for row, id in enumerate(source.ids):
        np.testing.assert_array_equal(source.labels(id), made.labels[row])
        np.testing.assert_array_equal(source.mask(id), made.masks[row])
        assert saliency.get_scores(id).scores.shape == (64, 64, 1)
        assert store.get_scores(id).scores.shape == (64, 64, 9)
