"""Mean field equals pydensecrf and its own exact form; bad input is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_draw import FOLDER, crf_scene

from wsss_jax.crf import by_pydensecrf as crf_pydensecrf
from wsss_jax.crf import dense as crf
from wsss_jax.crf import lattice, lattice_host

CASES = {
    "psa_0": ("psa", 0),
    "psa_1": ("psa", 1),
    "psa_10": ("psa", 10),
    "deeplab_10": ("deeplab", 10),
    "irn_1": ("irn", 1),
    "irn_10": ("irn", 10),
}


def assert_same_distribution(ours, theirs):
    """A rounding tie may decide whether one lattice vertex exists, so the maximum is no bar."""
    difference = np.abs(ours - theirs)
    assert difference.mean() <= 1e-5
    assert np.quantile(difference, 0.9999) <= 2e-3
    assert (ours.argmax(-1) == theirs.argmax(-1)).mean() >= 0.9999


def scene(height=24, width=32, k=3, seed=0):
    """Two flat colours with noise, and smooth probabilities that roughly know which is which."""
    rng = np.random.default_rng(seed)
    image = np.full((height, width, 3), 60.0)
    image[:, width // 2 :] = 170
    image += rng.normal(0, 8, image.shape)
    logits = rng.normal(0, 1, (height, width, k)).astype(np.float32)
    logits[:, width // 2 :, 1] += 1.5
    logits[:, : width // 2, 0] += 1.5
    probability = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    return image.clip(0, 255).astype(np.uint8), probability.astype(np.float32)


@pytest.mark.parametrize("case", CASES)
def test_refine_equals_the_reference_library(case):
    image, probability = crf_scene()
    preset, iterations = CASES[case]
    settings = dataclasses.replace(crf.PRESETS[preset], iterations=iterations)
    if preset == "irn":
        labels = probability.argmax(-1).astype(np.uint8)
        ours = crf.refine_labels(image, labels, settings, k=3, gt_prob=0.7)
    else:
        ours = crf.refine(image, probability, settings)
    with np.load(FOLDER / "crf.npz") as stored:
        assert_same_distribution(ours, stored[case])


def test_refine_equals_the_reference_library_on_a_photograph(shared):
    with np.load(shared / "golden/dense_crf/2007_001299.npz") as stored:
        image, wanted = stored["image"], stored["psa_10"]
        probability = np.ascontiguousarray(stored["probability"].transpose(1, 2, 0))
    ours = crf.refine(image, probability, crf.PRESETS["psa"])
    assert_same_distribution(ours, wanted.transpose(1, 2, 0))


@pytest.mark.skipif(not crf_pydensecrf.available(), reason="pydensecrf is not installed")
@pytest.mark.parametrize("preset", ["psa", "irn"])
def test_refine_equals_the_installed_library(preset):
    image, probability = scene(41, 53, k=4)
    settings = crf.PRESETS[preset]
    theirs = crf.BACKENDS["pydensecrf"](image, probability, settings)
    assert_same_distribution(crf.refine(image, probability, settings), theirs)


def test_bad_input_is_refused():
    image, probability = scene(8, 9)
    settings = crf.PRESETS["psa"]
    for refine in crf.BACKENDS.values():
        with pytest.raises(ValueError, match=r"8x9 .* 7x9"):
            refine(image, probability[1:], settings)
        with pytest.raises(ValueError, match="nan"):
            refine(image, np.full_like(probability, np.nan), settings)
        with pytest.raises(ValueError, match=r"-0\.5"):
            refine(image, probability - np.float32(0.5) - probability.min(), settings)


def kernel_matrices(image, settings):
    """Both normalised lattice kernels as dense matrices: what they make of each unit vector."""
    height, width = image.shape[:2]
    pixels, matrices = height * width, []
    for points in (
        crf._position_points(height, width, settings.gaussian_sxy, 2),
        crf._bilateral_points(image, settings),
    ):
        built = lattice.first_points(lattice_host.build(points), pixels)
        matrices.append(kernel_matrix(built, jnp.eye(pixels)))
    return matrices


@jax.jit
def kernel_matrix(built, units):
    return lattice.smooth(units, lattice.normalised(built))


def test_the_fast_path_equals_the_plain_recursion_for_any_number_of_labels():
    settings = dataclasses.replace(crf.PRESETS["psa"], iterations=3)
    image = scene(9, 11)[0]
    spatial, bilateral = map(np.asarray, kernel_matrices(image, settings))
    reach = settings.gaussian_compat * spatial + settings.bilateral_compat * bilateral
    for k in (1, 2, 3, 4, 5, 7):
        probability = np.random.default_rng(k).uniform(0.05, 1, (9, 11, k)).astype(np.float32)
        logits = np.log(probability.reshape(-1, k))
        q = softmax(logits)
        for _ in range(3):
            q = softmax(logits + reach @ q)
        got = crf.refine(image, probability, settings)
        np.testing.assert_allclose(got.reshape(-1, k), q, atol=2e-5, err_msg=f"{k} labels")


def softmax(logits):
    odds = np.exp(logits - logits.max(-1, keepdims=True))
    return odds / odds.sum(-1, keepdims=True)


def test_absent_labels_change_nothing():
    image, probability = scene(14, 17, k=3)
    settings = crf.PRESETS["irn"]
    full = np.zeros((14, 17, 6), np.float32)
    full[..., [0, 2, 5]] = probability
    alone = crf.refine(image, probability, settings)
    np.testing.assert_array_equal(crf.refine(image, full, settings)[..., [0, 2, 5]], alone)
    # Carried along with the probability 1e-5 that clipping gives them, they change rounding only.
    carried = crf.refine(image, np.maximum(full, 1e-5), settings)
    np.testing.assert_allclose(carried[..., [0, 2, 5]], alone, atol=1e-4)
    assert carried[..., [1, 3, 4]].max() < 1e-4


def test_other_colours_and_nearly_the_same_size_compile_nothing():
    settings = crf.PRESETS["psa"]
    crf.refine(*scene(120, 160), settings)
    programs = (lattice_host._locate, crf._potts)
    before = [program._cache_size() for program in programs]
    image, probability = scene(119, 160, seed=1)
    crf.refine(240 - image, probability, settings)
    assert [program._cache_size() for program in programs] == before


def test_one_pixel_keeps_its_order():
    image = np.full((1, 1, 3), 7, np.uint8)
    probability = np.array([[[0.6, 0.4]]], np.float32)
    refined = crf.refine(image, probability, crf.PRESETS["psa"])
    # The pixel agrees with itself, at the strength of both kernels: it grows surer, no more.
    assert refined[0, 0, 0] > 0.6
    np.testing.assert_allclose(refined.sum(), 1, rtol=1e-6)


def test_hard_labels_cost_what_their_probability_says():
    labels = np.array([[0, 2]], np.uint8)
    energy = crf.unary_from_labels(labels, 3, 0.7)
    np.testing.assert_allclose(np.exp(-energy), [[[0.7, 0.15, 0.15], [0.15, 0.15, 0.7]]], rtol=1e-6)
    assert not crf.unary_from_labels(np.zeros((2, 2), np.uint8), 1, 0.7).any()
    with pytest.raises(ValueError, match=r"0\.\.255"):
        crf.unary_from_labels(np.array([[0, 255]], np.uint8), 3, 0.7)
    with pytest.raises(ValueError, match="gt_prob"):
        crf.unary_from_labels(labels, 3, 1.0)


def test_no_iterations_give_the_softmax():
    image, probability = scene(9, 11)
    settings = dataclasses.replace(crf.PRESETS["psa"], iterations=0)
    np.testing.assert_allclose(crf.refine(image, probability, settings), probability, atol=1e-6)


def test_a_batch_is_its_images_one_by_one():
    image, probability = scene(9, 11, k=3)
    other, more = scene(9, 11, k=3, seed=1)
    settings = dataclasses.replace(crf.PRESETS["irn"], iterations=3)
    images, probabilities = np.stack([image, other]), np.stack([probability, more])
    got = crf.refine_batch(images, probabilities, settings, rows=512)
    few = crf.refine_batch(other[None], more[None], settings, rows=300)  # grows until they suffice
    np.testing.assert_allclose(got[0], crf.refine(image, probability, settings), atol=2e-5)
    np.testing.assert_allclose(got[1], crf.refine(other, more, settings), atol=2e-5)
    np.testing.assert_allclose(few[0], got[1], atol=2e-5)


def exact_loss(image, unary):
    """A scalar of widths, Potts strength and label costs, through the exact kernels."""

    def loss(widths, strength, costs):
        kernels = crf.exact_kernels(image, widths, tile=64)
        q = crf.mean_field(unary, kernels, (strength, costs), iterations=2)
        return jnp.sum(q**2 * jnp.arange(1.0, 4.0)[None])

    return jax.jit(loss)


def test_widths_and_compatibilities_are_learnable_through_exact_kernels():
    image, probability = scene(6, 7)
    loss = exact_loss(jnp.asarray(image, jnp.float32), -jnp.log(probability.reshape(-1, 3)))
    widths, strength = jnp.array([2.0, 4.0, 20.0]), jnp.float32(0.7)
    costs = jnp.array([[-0.8, 0.1, 0.3], [0.1, -0.6, 0.2], [0.3, 0.2, -1.0]])
    arguments = (widths, strength, costs)
    slopes = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(*arguments)
    for number, (value, slope) in enumerate(zip(arguments, slopes, strict=True)):
        for at in np.ndindex(value.shape):
            step = 0.01 * abs(float(value[at]))
            two = []
            for sign in (1, -1):
                moved = list(arguments)
                moved[number] = value.at[at].add(sign * step)
                two.append(float(loss(*moved)))
            measured = (two[0] - two[1]) / (2 * step)
            assert abs(measured - float(slope[at])) <= 0.02 * abs(measured) + 2e-3, (number, at)


def test_widths_and_strengths_have_gradients_through_the_lattice():
    image, probability = scene(6, 7)
    unary = -jnp.log(probability.reshape(-1, 3))

    def with_used(widths, strength):
        kernels, used = crf.lattice_kernels(
            jnp.asarray(image, jnp.float32), widths, rows=(200, 300)
        )
        q = crf.mean_field(unary, kernels, (strength, strength), iterations=2)
        return jnp.sum(q**2 * jnp.arange(1.0, 4.0)[None]), used

    widths, strength = jnp.array([2.0, 9.0, 40.0]), jnp.float32(0.7)
    both = jax.jit(jax.value_and_grad(with_used, argnums=(0, 1), has_aux=True))
    (_, used), (by_width, by_strength) = both(widths, strength)

    def loss(widths, strength):
        return float(both(widths, strength)[0][0])

    assert (np.asarray(used) < [200, 300]).all()
    # Steps so small that no pixel changes its simplex.
    step = 0.01
    two = [loss(widths, strength + s) for s in (step, -step)]
    np.testing.assert_allclose((two[0] - two[1]) / (2 * step), by_strength, rtol=0.02)
    for i in range(3):
        near = [loss(widths.at[i].add(s * 2e-3 * widths[i]), strength) for s in (1, -1)]
        measured = (near[0] - near[1]) / (4e-3 * float(widths[i]))
        assert abs(measured - float(by_width[i])) <= 0.05 * abs(measured) + 0.02


def test_a_potts_strength_is_a_cost_matrix():
    image, probability = scene(6, 7)
    unary = -jnp.log(probability.reshape(-1, 3))
    kernels = crf.exact_kernels(jnp.asarray(image, jnp.float32), jnp.array([2.0, 4.0, 20.0]))
    scalar = crf.mean_field(unary, kernels, (jnp.float32(2), jnp.float32(3)), iterations=3)
    matrix = crf.mean_field(unary, kernels, (-2 * jnp.eye(3), -3 * jnp.eye(3)), iterations=3)
    np.testing.assert_allclose(scalar, matrix, atol=1e-5)


def test_the_lattice_is_close_to_exact_kernels():
    image, probability = scene(16, 20)
    settings = crf.PRESETS["psa"]
    widths = jnp.array([settings.gaussian_sxy, settings.bilateral_sxy, settings.bilateral_srgb])
    kernels = crf.exact_kernels(jnp.asarray(image, jnp.float32), widths)
    strengths = (jnp.float32(settings.gaussian_compat), jnp.float32(settings.bilateral_compat))
    unary = -jnp.log(probability.reshape(-1, 3))
    exact = crf.mean_field(unary, kernels, strengths, iterations=settings.iterations)
    fast = crf.refine(image, probability, settings).reshape(-1, 3)
    assert np.abs(fast - exact).mean() < 0.01
    assert (fast.argmax(-1) == np.asarray(exact).argmax(-1)).mean() > 0.98


def test_every_preset_refines_towards_its_regions():
    image, probability = scene(12, 16, k=2)
    truth = np.repeat(np.arange(16) >= 8, 12).reshape(16, 12).T
    before = (probability.argmax(-1) == truth).mean()
    for name, settings in crf.PRESETS.items():
        after = crf.refine(image, probability, settings)
        np.testing.assert_allclose(after.sum(-1), 1, atol=1e-5, err_msg=name)
        assert (after.argmax(-1) == truth).mean() >= before, name
    with pytest.raises(ValueError, match="bilateral_sxy"):
        crf.Settings(bilateral_sxy=0.0)
