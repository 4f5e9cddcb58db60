import numpy as np
import pytest

from wsss_jax.data.classes import VOC, ClassList, palette, to_class_index, to_mask_index


def test_the_two_numberings_convert_into_each_other():
    labels = np.arange(20)
    np.testing.assert_array_equal(to_mask_index(labels), np.arange(1, 21))
    np.testing.assert_array_equal(to_class_index(to_mask_index(labels)), labels)


@pytest.mark.parametrize("value", [0, 255])
def test_background_and_ignore_are_no_classes(value):
    with pytest.raises(ValueError, match="no classes"):
        to_class_index(np.array([1, value]))


def test_voc_is_in_the_order_of_its_masks():
    assert len(VOC) == 20
    assert VOC.mask_names()[15] == "person" and VOC.index("cow") == 9


def test_the_palette_is_that_of_voc():
    colours = palette()
    assert colours[0].tolist() == [0, 0, 0] and colours[1].tolist() == [128, 0, 0]
    assert colours[15].tolist() == [192, 128, 128] and colours[255].tolist() == [224, 224, 192]


def test_labels_become_a_vector_and_unknown_names_the_nearest():
    classes = ClassList(("cat", "dog"))
    np.testing.assert_array_equal(classes.multi_hot(["dog"]), [False, True])
    with pytest.raises(ValueError, match="did you mean 'dog'"):
        classes.multi_hot(["dgo"])


def test_repeated_and_too_many_names_are_refused():
    with pytest.raises(ValueError, match="repeat"):
        ClassList(("a", "a"))
    with pytest.raises(ValueError, match="wanted 1 to 254"):
        ClassList(tuple(f"c{n}" for n in range(255)))
