"""Networks read as equations: rests by hand, sums that must be whole, and cuts at named places."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name
from toy_scorers import conv_scorer, photos

from wsss_jax.backbones.layers import add_bias, relu6
from wsss_jax.explain import equations, gradient
from wsss_jax.types import Scorer


def parts(function, x, *, compiled=True):
    """Value, gradient × x, and per equation the sum of its rest × gradient."""
    names = []

    def run(x):
        found = equations.decompose(function, x)
        names[:] = [rest.equation for rest in found.rests]
        at_x, at_rests = found.pull_back(jnp.ones_like(found.value))
        pairs = zip(found.rests, at_rests, strict=True)
        sums = [equations.weighed(rest.value, g).sum() for rest, g in pairs]
        return found.value.sum(), (at_x * x).sum(), sums

    value, linear, sums = (jax.jit(run) if compiled else run)(x)
    return float(value), float(linear), list(zip(names, map(float, sums), strict=True))


X = jnp.array([1.0, -2, 3])


@pytest.mark.parametrize(
    ("function", "value", "linear", "rests"),
    [
        (lambda x: 2 * x + jnp.full(3, 5.0), 19, 4, [("add", 15)]),
        (lambda x: jnp.full(3, 5.0) - x, 13, -2, [("sub", 15)]),
        (lambda x: x - jnp.full(3, 5.0), -13, 2, [("sub", -15)]),
        (lambda x: 5 - x, 13, -2, [("number", 15)]),
        (lambda x: jax.nn.relu(x) * 3, 12, 12, []),
        (lambda x: x.max() + x.min() + x[::-1].sum(), 3, 3, []),
        (lambda x: jnp.where(x > 0, x, 0.0), 4, 4, []),
        (lambda x: jnp.where(x > 0, x, 7.0), 11, 4, [("select_n", 7)]),
        (lambda x: x * x, 14, 28, [("mul", -14)]),
        (lambda x: jnp.stack([x, x]) @ jnp.ones((3, 2)), 8, 8, []),
        (lambda x: relu6(4 * x), 10, 4, [("custom_jvp_call", 6)]),
        (lambda x: add_bias(x[None], jnp.full(3, 2.0)), 8, 2, [("add", 6)]),
    ],
)
def test_rests_by_hand(function, value, linear, rests):
    assert parts(function, X) == (value, linear, rests)


def curved(x):
    """What no linear part explains: a norm, a gate, a loop, a branch, and a saturation."""
    y = x / jnp.sqrt((x**2).mean() + 1e-3)
    y = y * jax.nn.sigmoid(y) + jnp.tanh(x)
    y = jax.lax.fori_loop(0, 2, lambda _, z: z + jnp.sin(z), y)
    y = jax.lax.cond(y.sum() > 0, lambda z: z * 2 + 1, lambda z: z**3, y)
    return jax.checkpoint(lambda z: jnp.exp(0.1 * z))(y)


def test_the_parts_of_any_function_make_it_whole_compiled_or_not():
    value, linear, rests = parts(curved, X)
    assert value == pytest.approx(linear + sum(rest for _, rest in rests), rel=1e-5)


def test_compiled_or_not_the_parts_are_the_same():
    def function(x):
        return relu6(3 * x) * jax.nn.sigmoid(x) + jnp.arange(3.0)

    for one, other in zip(
        parts(function, X)[2], parts(function, X, compiled=False)[2], strict=True
    ):
        assert one[0] == other[0] and one[1] == pytest.approx(other[1], rel=1e-5)


def test_gradients_are_those_of_jax_also_at_kinks():
    def function(x):
        return relu6(jax.nn.relu(x) * 3).sum()[None]

    x = jnp.array([-1.0, 0, 1, 2, 3])
    at_x = jax.jit(lambda x: equations.decompose(function, x).pull_back(jnp.ones(1))[0])(x)
    np.testing.assert_array_equal(at_x, jax.jit(jax.grad(lambda x: function(x)[0]))(x))


def test_infinite_padding_that_never_wins_adds_nothing():
    def pooled(x):
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (3,), (1,), "SAME")

    value, linear, _ = parts(lambda x: pooled(jnp.pad(x, 1, constant_values=-jnp.inf)[1:]), X)
    assert (value, linear) == (10, 10)


def test_half_precision_keeps_its_type_and_its_sum():
    def function(x):
        y = jax.nn.relu(x * jnp.bfloat16(0.5) + jnp.bfloat16(1))
        return y.sum()[None]

    found = equations.decompose(function, X.astype(jnp.bfloat16))
    at_x, (at_rest,) = found.pull_back(jnp.ones(1, jnp.bfloat16))
    assert found.value.dtype == at_x.dtype == jnp.bfloat16
    assert found.rests[0].value.dtype == jnp.float32 and found.value[0] == 4
    np.testing.assert_array_equal(at_rest, [1, 0, 1])


def named_scorer(*, bypass=0.0):
    """Two convolutional layers, the first of which has a name, and one way around it."""
    plain = conv_scorer()

    def features(images):
        x = checkpoint_name(plain.features(images), "first")
        x = jnp.tanh(x @ jax.random.normal(jax.random.key(3), (4, 4)))
        around = images[:, ::2, ::2, :1] if bypass else jnp.zeros((1, 1, 1, 1))
        return checkpoint_name(x + bypass * around, "second block")

    return plain._replace(features=features, class_maps=None)


def test_a_named_layer_is_where_the_features_are_taken():
    scorer, images = named_scorer(), photos()
    shape = jax.ShapeDtypeStruct(images.shape, images.dtype)
    assert equations.layer_names(scorer, shape) == ("first", "second block")
    first, second = (equations.at_layer(scorer, shape, name) for name in ("first", "second block"))
    labels = jnp.ones((2, 3), bool)

    @jax.jit
    def run(images):
        a = first.features(images)
        pairs = (
            (a, conv_scorer().features(images)),
            (first.head(a), scorer.head(scorer.features(images))),
        )
        return *pairs, tuple(gradient.grad_cam(s, images, labels) for s in (second, scorer))

    for found, wanted in run(images):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)


def test_the_gradient_at_a_named_layer_is_that_of_the_whole_network():
    scorer, images = named_scorer(), photos()
    first = equations.at_layer(scorer, images, "first")
    mix = jax.random.normal(jax.random.key(3), (4, 4))

    @jax.jit
    def gradients(images):
        a = first.features(images)
        by_hand = lambda a: scorer.head(jnp.tanh(a @ mix))[:, 1].sum()  # noqa: E731
        return jax.grad(lambda a: first.head(a)[:, 1].sum())(a), jax.grad(by_hand)(a)

    np.testing.assert_allclose(*gradients(images), rtol=1e-4, atol=1e-7)


def test_a_layer_that_does_not_exist_is_refused_with_the_nearest_name():
    with pytest.raises(ValueError, match="unknown layer 'frist'; did you mean 'first'"):
        equations.at_layer(named_scorer(), photos(), "frist")


def test_a_layer_with_a_way_around_it_is_refused():
    images = photos()
    first = equations.at_layer(named_scorer(bypass=1.0), images, "first")
    with pytest.raises(ValueError, match="not the only way"):
        jax.eval_shape(lambda x: first.head(first.features(x)), images)


def test_features_of_other_images_than_the_cut_was_made_for_are_refused():
    first = equations.at_layer(named_scorer(), photos(), "first")
    with pytest.raises(ValueError, match=r"features are \(1, 4, 6, 4\).*cut the network anew"):
        jax.eval_shape(lambda x: first.head(first.features(x)), photos(1))


def test_a_name_may_stand_inside_a_compiled_function():
    scorer = Scorer(
        features=lambda x: jax.jit(lambda x: checkpoint_name(2 * x, "twice") + 1)(x),
        head=lambda a: a.sum(axis=(1, 2)),
    )
    cut = equations.at_layer(scorer, photos(), "twice")
    np.testing.assert_array_equal(cut.features(photos()), 2 * photos())
