"""HED: its published weights against the reference, padding, and HDF5 files read safely."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from golden_weights import assert_close, filled

from wsss_jax.backbones.hed import Hed
from wsss_jax.data.classes import EDGES
from wsss_jax.datasets import synthetic
from wsss_jax.datasets.table import open_dataset
from wsss_jax.errors import BadFileError, MissingFileError
from wsss_jax.models import boundaries
from wsss_jax.stages import edges
from wsss_jax.weights import import_files, loading

NARROW = (4, 4, 4, 4, 4)


@pytest.mark.parametrize(("image", "wanted"), [("image", "fused"), ("odd_image", "odd_fused")])
def test_published_weights_give_the_reference(image, wanted, shared):
    path = shared / "golden/networks/hed.npz"
    network = nnx.eval_shape(lambda: Hed(rngs=nnx.Rngs(0)))
    try:
        loading.load(network, "hed")
    except MissingFileError as problem:
        pytest.skip(str(problem))
    with np.load(path) as golden:
        found = network(jnp.asarray(golden[image][None], jnp.float32) / 255)
        assert_close(np.asarray(found)[0, ..., 0], golden[wanted][0, 0], 1e-5)


def test_a_canvas_changes_nothing():
    network = filled(lambda: Hed(rngs=nnx.Rngs(0), widths=NARROW))
    image = np.random.default_rng(0).random((1, 32, 48, 3), np.float32)
    alone = network(jnp.asarray(image))
    canvas, inside = np.zeros((1, 64, 64, 3), np.float32), np.zeros((1, 64, 64), bool)
    canvas[:, :32, :48], inside[:, :32, :48] = image, True
    assert_close(network(jnp.asarray(canvas), jnp.asarray(inside))[:, :32, :48], alone)


def test_keras_files_fill_it_and_strange_ones_are_refused(tmp_path):
    h5py = pytest.importorskip("h5py", reason="h5py is not installed")
    network = filled(lambda: Hed(rngs=nnx.Rngs(0), widths=NARROW), seed=1)
    ours = {path: value[...] for path, value in loading.import_names.values_of(network).items()}
    path = tmp_path / "hed.weights.h5"
    with h5py.File(path, "w") as file:
        for name, our in network.parameter_names().items():
            file[name] = np.asarray(ours[our])
    other = filled(lambda: Hed(rngs=nnx.Rngs(0), widths=NARROW), seed=2)
    arrays = import_files.read_arrays(path)
    loading.fill(other, arrays, called=str(path))
    image = jnp.full((1, 16, 16, 3), 0.3)
    np.testing.assert_array_equal(other(image), network(image))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadFileError, match="damaged or no HDF5 file"):
        import_files.read(path)
    with h5py.File(path, "w") as file:
        file.create_dataset("a", (2**30,), "f4", chunks=(2**20,), compression="gzip")
    with pytest.raises(BadFileError, match="packed or lies elsewhere"):
        import_files.read(path)


def test_its_boundaries_become_a_store_of_edges(tmp_path, monkeypatch):
    network = filled(lambda: Hed(rngs=nnx.Rngs(0), widths=NARROW), seed=3)
    loading.save(network, tmp_path / "narrow.npz")
    monkeypatch.setattr(boundaries, "Hed", partial(Hed, widths=NARROW))
    data = synthetic.write(tmp_path / "data", 2, 0, settings=synthetic.Scenes(size=48))
    source = open_dataset(data, split="train")
    asked = edges.Edges()  # of HED, boundaries as they are
    ids = source.ids[:1]
    store = edges.edges(tmp_path / "narrow.npz", source, tmp_path / "edges", asked, ids=ids)
    image = jnp.asarray(source.image(ids[0])[None] / np.float32(255))
    wanted = jax.nn.sigmoid(network(image)).reshape(12, 4, 12, 4).mean((1, 3))
    found = store.get_scores(ids[0]).scores[..., 0]
    np.testing.assert_allclose(found[:-1, :-1], wanted[:-1, :-1], atol=2e-3)  # float16 in stores
    assert store.classes == EDGES and store.kind == "probability"
