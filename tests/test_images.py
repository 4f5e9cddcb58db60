"""Resizing by both conventions, mirroring and normalising within the real part of a canvas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsss_jax.ops import images


def uniform(*shape):
    return jax.random.uniform(jax.random.key(0), shape)


def slow_bilinear(x, size, align_corners):
    """One output pixel at a time, from the definition."""
    x, out = np.asarray(x, np.float64), np.zeros((*size, x.shape[-1]))
    for i in range(size[0]):
        for j in range(size[1]):
            at = []
            for o, n, m in ((i, x.shape[0], size[0]), (j, x.shape[1], size[1])):
                corner = o * (n - 1) / max(m - 1, 1)
                at.append(corner if align_corners else np.clip((o + 0.5) * n / m - 0.5, 0, n - 1))
            (y0, x0), (fy, fx) = np.floor(at).astype(int), np.array(at) % 1
            y1, x1 = min(y0 + 1, x.shape[0] - 1), min(x0 + 1, x.shape[1] - 1)
            top = x[y0, x0] * (1 - fx) + x[y0, x1] * fx
            out[i, j] = top * (1 - fy) + (x[y1, x0] * (1 - fx) + x[y1, x1] * fx) * fy
    return out


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("size", [(11, 6), (3, 9), (1, 2)])
def test_resize_agrees_with_the_definition(size, align_corners):
    x = uniform(5, 4, 2)
    ours = images.resize(x, size, align_corners=align_corners)
    np.testing.assert_allclose(ours, slow_bilinear(x, size, align_corners), atol=1e-6)


def test_resize_known_values_of_both_conventions():
    x = jnp.array([[0.0], [1.0]])[None]
    areas = images.resize(x, (1, 4))[0, :, 0]
    corners = images.resize(x, (1, 4), align_corners=True)[0, :, 0]
    np.testing.assert_allclose(areas, [0, 0.25, 0.75, 1])
    np.testing.assert_allclose(corners, [0, 1 / 3, 2 / 3, 1], rtol=1e-6)


def test_resize_refuses_what_nobody_defines():
    with pytest.raises(ValueError, match="align_corners"):
        images.resize(uniform(4, 4, 1), (2, 2), method="nearest", align_corners=True)
    with pytest.raises(ValueError, match="at least 1"):
        images.resize(uniform(4, 4, 1), (0, 2))


def test_flip_within_mirrors_the_real_part_only():
    x = uniform(2, 3, 5, 2)
    sizes = jnp.array([[3, 5], [2, 3]])
    flipped = images.flip_within(x, sizes)
    np.testing.assert_array_equal(flipped[0], x[0, :, ::-1])
    np.testing.assert_array_equal(flipped[1, :, :3], x[1, :, :3][:, ::-1])
    np.testing.assert_array_equal(flipped[1, :, 3:], x[1, :, 3:])
    np.testing.assert_array_equal(images.flip_within(flipped, sizes), x)
