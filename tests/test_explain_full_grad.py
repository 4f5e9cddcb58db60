"""FullGrad: parts by hand, completeness in our own networks, and the reference's maps."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from golden_draw import EXPLAINED, FOLDER, drawn, normal, reference_arrays
from golden_weights import filled
from toy_scorers import conv_features, linear_scorer, net_t, photos, t_image

from wsss_jax.backbones import resnet
from wsss_jax.backbones.layers import Conv3x3, Pointwise
from wsss_jax.backbones.mobilenet import Inverted, relu6
from wsss_jax.explain import equations, full_gradient, gradient, normalise
from wsss_jax.ops import images as image_ops
from wsss_jax.weights import loading as weights

ALL = jnp.ones((1, 3), bool)


def test_net_t_is_its_input_and_its_bias():
    parts = jax.jit(partial(full_gradient.completeness, net_t()))(t_image())
    np.testing.assert_allclose(parts.input, [[1, 5, -1.5]], rtol=1e-6)
    np.testing.assert_allclose(parts.added, [[0, 1, -0.5]], atol=1e-6)
    np.testing.assert_array_equal(parts.implied, [[0, 0, 0]])
    np.testing.assert_allclose(parts.gap, [[0, 0, 0]], atol=1e-6)


def test_the_map_of_net_t_is_its_rescaled_input_part():
    """Its only bias is that of the linear layer, which lies on no grid."""
    maps = jax.jit(partial(full_gradient.full_grad, net_t()))(t_image(), ALL)
    weighed = np.abs(np.asarray(t_image()[0, ..., :2] * jnp.array([0.5, 0.25])[None, None]))
    wanted = weighed.sum(axis=-1) / weighed.max()
    np.testing.assert_allclose(maps[0, ..., 1], wanted, rtol=1e-5)


def biased(images):
    """Features with a bias per channel, on a grid of half the size."""
    return jax.nn.relu(
        conv_features()(images) + jnp.array([0.3, -0.2, 0.1, -0.4])[None, None, None]
    )


def test_the_map_equals_a_plain_sum_over_layers():
    weight, bias = jnp.arange(12.0).reshape(3, 4) - 5, jnp.ones(3)
    scorer, images = linear_scorer(biased, weight, bias), photos()
    labels = jnp.ones((2, 3), bool)

    @jax.jit
    def run(images):
        score = lambda x: scorer.head(scorer.features(x))[:, 1].sum()  # noqa: E731
        at_features = jnp.where(scorer.features(images) > 0, weight[1][None, None, None] / 24, 0)
        return full_gradient.full_grad(scorer, images, labels), jax.grad(score)(images), at_features

    maps, at_input, at_features = run(images)
    wanted = 0
    biases = np.array([0.3, -0.2, 0.1, -0.4])
    for part in (at_input * images, np.asarray(at_features) * biases):
        part = np.abs(np.asarray(part))
        part = part - part.min(axis=(1, 2, 3), keepdims=True)
        part = jnp.asarray(part / (part.max(axis=(1, 2, 3), keepdims=True) + 1e-6))
        wanted = wanted + image_ops.resize(part, (8, 12), align_corners=True).sum(axis=-1)
    np.testing.assert_allclose(maps[..., 1], wanted, rtol=1e-4, atol=1e-5)


def test_every_variant_is_finite_on_a_blank_image():
    scorer, one = linear_scorer(biased, jnp.ones((1, 4)), jnp.ones(1)), jnp.ones((1, 1), bool)

    @jax.jit
    def run(images):
        variants = full_gradient.FULL_GRADS.values()
        return [full_gradient.full_grad(scorer, images, one, settings=s) for s in variants]

    for maps in run(jnp.zeros((1, 8, 12, 3))):
        assert maps.shape == (1, 8, 12, 1) and np.isfinite(maps).all()


class Small(nnx.Module):
    """The layers of MobileNetV2 in little: ReLU6 caps, and biases of every kind of convolution."""

    def __init__(self, *, rngs):
        self.stem = Conv3x3(3, 4, stride=2, rngs=rngs)
        block = {"factor": 2, "stride": 1, "dilation": 1, "residual": True}
        self.block = Inverted(4, 4, **block, rngs=rngs)
        self.last = Pointwise(4, 6, rngs=rngs)

    def __call__(self, images, inside):
        x = relu6(4 * self.stem(images, inside))
        return relu6(4 * self.last(self.block(x, inside[:, ::2, ::2])))


def test_the_parts_of_a_mobilenet_are_whole_with_what_its_caps_imply():
    module = filled(lambda: Small(rngs=nnx.Rngs(0)))
    inside = jnp.zeros((1, 8, 12), bool).at[:, :6, :10].set(True)
    scorer = linear_scorer(lambda x: module(x, inside), np.eye(6, dtype=np.float32), np.ones(6))
    images = 4 * jnp.where(inside[..., None], photos(1), 0)
    parts = jax.jit(partial(full_gradient.completeness, scorer))(images)
    assert np.abs(parts.logits).max() > 1 and np.abs(parts.implied).max() > 0.1
    np.testing.assert_allclose(parts.gap, np.zeros((1, 6)), atol=1e-4)


def residual_network():
    """A residual network of eight layers with drawn weights, and its classifier."""
    make = partial(resnet.ResNet, resnet.Basic, (1, 1, 1, 1), output_stride=32)
    module = nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0)))
    classifier = {"fc.weight": (6, 512), "fc.bias": (6,)}
    arrays, _ = reference_arrays("resnet34")
    arrays |= {name: drawn(name, shape) for name, shape in classifier.items()}
    weights.fill(module, arrays)
    return module, arrays


def test_the_reference_is_reproduced_through_our_network():
    """FullGrad, its completeness, and gradient maps of a layer inside, by its name."""
    with np.load(FOLDER / "explanations.npz") as file:
        stored = {key[7:]: file[key] for key in file.files if key.startswith("resnet/")}
    module, arrays = residual_network()
    graph, state = nnx.split(module)
    images = jnp.asarray(normal("images", (2, 3, 48, 64)).transpose(0, 2, 3, 1))
    labels = jnp.arange(6)[None, :] == jnp.asarray(EXPLAINED)[:, None]
    settings = full_gradient.FULL_GRADS["pytorch_grad_cam"]

    @jax.jit
    def run(state, images):
        module = nnx.merge(graph, state)
        scorer = linear_scorer(lambda x: module(x)[-1], arrays["fc.weight"], arrays["fc.bias"])
        maps = full_gradient.full_grad(scorer, images, labels, settings=settings)
        inner = equations.at_layer(scorer, images, "layer3")
        cam = gradient.grad_cam(inner, images, labels)
        return maps.sum(axis=-1), full_gradient.completeness(scorer, images[:1]), cam.sum(axis=-1)

    maps, parts, cam = run(state, images)
    final = normalise.stretch(maps[..., None])[..., 0]
    np.testing.assert_allclose(final, stored["FullGrad"], atol=2e-4)
    chosen, logits = EXPLAINED[0], stored["logits"][:1]
    np.testing.assert_allclose(parts.logits, logits, atol=1e-4)
    np.testing.assert_allclose(parts.input[0, chosen], stored["input_part"], atol=1e-4)
    np.testing.assert_allclose(parts.added, logits - parts.input, atol=2e-4)
    np.testing.assert_allclose(parts.gap, np.zeros((1, 6)), atol=2e-4)
    np.testing.assert_array_equal(parts.implied, np.zeros((1, 6)))
    wanted = stored["layer3/GradCAM"]
    np.testing.assert_allclose(cam, wanted, atol=1e-4 * np.abs(wanted).max())
