"""Reductions on a CPU are right, in this process and in those that it starts."""

from importlib import metadata

import jax
import jax.numpy as jnp
import numpy as np

from wsss_jax import xla


def test_a_maximum_over_cells_differs_from_image_to_image():
    def largest(x, first, second):
        power = jnp.square(x) @ jnp.full((64, 64), 1 / 64)
        y = jax.nn.relu(x / jnp.sqrt(power + 1e-5)) @ first
        return jax.nn.relu(jax.nn.relu(y) @ second).max((1, 2))

    rng = np.random.default_rng(0)
    x = rng.normal(size=(8, 12, 12, 64)).astype(np.float32)
    weights = rng.normal(size=(64, 128)), rng.normal(size=(128, 32))
    first, second = (w.astype(np.float32) for w in weights)
    wanted = largest(x, first, second)  # operation by operation
    np.testing.assert_allclose(jax.jit(largest)(x, first, second), wanted, rtol=1e-4)


def test_the_option_is_set_where_it_is_needed_and_known():
    assert xla.environment({}, "0.10.2") == {"XLA_FLAGS": f"{xla.FLAG}=-reduce"}
    assert xla.environment({"XLA_FLAGS": "--a=b"}, "0.12.0.1")["XLA_FLAGS"].startswith(
        "--a=b --xla"
    )
    for version in ("0.10.1", "0.13.0", "0.9.2"):
        assert xla.environment({"A": "b"}, version) == {"A": "b"}


def test_the_version_of_jaxlib_is_that_of_its_distribution():
    assert xla.jaxlib_version() == metadata.version("jaxlib")


def test_a_choice_of_the_users_stays():
    chosen = {"XLA_FLAGS": f"{xla.FLAG}=dot"}
    assert xla.environment(chosen, "0.11.0") == chosen


def test_compiled_programs_are_kept_in_the_users_cache_unless_told_otherwise(monkeypatch, tmp_path):
    name = "jax_compilation_cache_dir"
    before = jax.config.values[name]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    try:
        jax.config.update(name, None)
        xla.keep_compiled()
        assert jax.config.values[name] == str(tmp_path / "wsss_jax" / "compiled")
        jax.config.update(name, str(tmp_path / "elsewhere"))
        xla.keep_compiled()
        assert jax.config.values[name] == str(tmp_path / "elsewhere")
    finally:
        jax.config.update(name, before)
