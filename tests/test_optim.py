"""The optimizer's wrappers and groups, each against the same thing done by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toy_learning import ToyBatches, linear_system

from wsss_jax.train.optimizers import Optim, averaged, held, optimizer

PARAMS = {
    "backbone": {
        "stem": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)},
        "stem2": {"kernel": jnp.ones((2, 2))},
        "norm": {"scale": jnp.ones(2)},
    },
    "kernel": jnp.ones((2, 2)),
}
PLAIN = {"momentum": 0.0, "weight_decay": 0.0, "schedule": "constant"}


def first_step(optim, params=PARAMS, grads=None):
    """What the first update adds, by path, where every gradient is one."""
    update = optimizer(optim, 10, lambda name: not name.startswith("backbone"))
    ones = jax.tree.map(jnp.ones_like, params) if grads is None else grads
    with jax.numpy_dtype_promotion("standard"):
        steps, _ = update.update(ones, update.init(params), params)
    flat = jax.tree_util.tree_leaves_with_path(steps)
    return {"/".join(k.key for k in path): float(leaf.ravel()[0]) for path, leaf in flat}


def test_groups_learn_and_decay_as_in_the_reference_codes():
    steps = first_step(Optim(learning_rate=0.1, momentum=0.0, weight_decay=0.5))
    # rate times (gradient + decay times value): weights 1.5, biases twice 1, new layers ten times
    assert steps == pytest.approx(
        {
            "backbone/stem/kernel": -0.15,
            "backbone/stem/bias": -0.2,
            "backbone/stem2/kernel": -0.15,
            "backbone/norm/scale": -0.15,
            "kernel": -1.5,
        }
    )


def test_frozen_stages_keep_their_values_and_do_not_count_in_the_norm():
    steps = first_step(Optim(learning_rate=0.1, freeze=("stem",), clip=1.0, **PLAIN))
    share = 1 / np.sqrt(4 + 2 + 4)  # the norm of what is not frozen
    assert steps == pytest.approx(
        {
            "backbone/stem/kernel": 0,
            "backbone/stem/bias": 0,
            "backbone/stem2/kernel": -0.1 * share,
            "backbone/norm/scale": -0.1 * share,
            "kernel": -1.0 * share,
        }
    )
    with pytest.raises(ValueError, match=r"no stage 'stme' to freeze \(known: kernel, norm, stem"):
        first_step(Optim(freeze=("stme",)))


def test_held_parameters_get_no_gradient():
    grads = jax.grad(lambda p: sum(jnp.sum(x) for x in jax.tree.leaves(held(p, ("stem",)))))(PARAMS)
    assert not np.asarray(grads["backbone"]["stem"]["kernel"]).any()
    assert np.asarray(grads["backbone"]["stem2"]["kernel"]).all()


def test_the_quirk_takes_the_weight_decay_for_momentum():
    params = {"kernel": jnp.ones((1, 1))}
    grads = jax.tree.map(jnp.ones_like, params)
    for quirk, wanted in ((True, 0.25), (False, 0.9)):
        optim = Optim(
            learning_rate=1.0, weight_decay=0.25, schedule="constant", new_layers=1.0,
            momentum_is_weight_decay=quirk,
        )  # fmt: skip
        update = optimizer(optim, 10, lambda name: False)
        state, value, moves = update.init(params), params, []
        for _ in range(2):
            steps, state = update.update(grads, state, value)
            value = optax.apply_updates(value, steps)
            moves.append(-float(steps["kernel"][0, 0]))
        first = 1.25  # gradient one, decay 0.25 times one
        assert moves[0] == pytest.approx(first)
        assert moves[1] == pytest.approx(1 + 0.25 * (1 - first) + wanted * first)
    with pytest.raises(ValueError, match="of sgd only"):
        Optim("adamw", momentum_is_weight_decay=True)


def test_accumulated_gradients_are_those_of_one_large_batch():
    """Two batches of two against one of four: the same updates, half as many."""
    optim = {"learning_rate": 0.5, "clip": 0.05}
    small = linear_system(4, Optim(accumulate=2, **optim))
    large = linear_system(2, Optim(**optim))
    halves, whole = small.init(jax.random.key(0)), large.init(jax.random.key(0))
    one, other = jax.jit(small.step), jax.jit(large.step)
    batches = ToyBatches()
    for _ in range(2):
        batch = next(batches)
        whole, _ = other(whole, batch, None)
        before = halves.params
        for rows in (slice(0, 2), slice(2, 4)):
            halves, _ = one(halves, jax.tree.map(lambda x, rows=rows: x[rows], batch), None)
            if rows.start == 0:  # nothing moves before the last of them
                jax.tree.map(np.testing.assert_array_equal, halves.params, before)
    assert not np.array_equal(whole.params["kernel"][...], before["kernel"][...])
    for a, b in zip(jax.tree.leaves(whole.params), jax.tree.leaves(halves.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_moving_average_is_that_of_the_parameters(accumulate):
    optim = Optim(learning_rate=0.5, ema=0.2, accumulate=accumulate)
    system, batches = linear_system(6, optim), ToyBatches()
    state, step = system.init(jax.random.key(0)), jax.jit(system.step)
    average, count = np.asarray(state.params["kernel"][...]), 0
    for n in range(4):
        state, _ = step(state, next(batches), None)
        if (n + 1) % accumulate == 0:
            decay = min(0.2, (1 + count) / (10 + count))
            average = decay * average + (1 - decay) * np.asarray(state.params["kernel"][...])
            count += 1
    np.testing.assert_allclose(state.averaged["kernel"][...], average, rtol=1e-5)
    plain = linear_system().init(jax.random.key(0))
    assert plain.averaged is plain.params
    assert averaged(plain.params, plain.opt_state) is plain.params


def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match="at least one batch"):
        Optim(accumulate=0)
    with pytest.raises(ValueError, match="decay in"):
        Optim(ema=1.0)
