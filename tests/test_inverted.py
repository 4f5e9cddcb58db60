"""EfficientNet-Lite and MobileNetV2: reference outputs, windows of TensorFlow, weight names."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from golden_weights import assert_close

from wsss_jax.models import BACKBONES, import_files, weights
from wsss_jax.models.inverted import Stage

FILES = {
    "lite0_224": "efficientnet-lite0-57934424.pth",
    "lite2_256": "efficientnet-lite2-9656183e.pth",
}
SMALL = (Stage(1, 3, 1, 1, 4), Stage(2, 5, 2, 2, 8), Stage(1, 3, 2, 2, 8), Stage(1, 5, 2, 2, 8))


@pytest.mark.parametrize("name", sorted(FILES))
def test_public_weights_give_the_reference_outputs(shared, name):
    path = shared.parent / "scratch/weights" / FILES[name]
    arrays = import_files.read_arrays(path)
    module = nnx.eval_shape(
        lambda: BACKBONES[f"efficientnet_{name[:5]}"](rngs=nnx.Rngs(0), output_stride=32)
    )
    weights.fill(module, arrays)
    graph, state = nnx.split(module)
    with np.load(shared / "golden/networks/efficientnet_lite.npz") as file:
        stored = {key.split("/")[1]: file[key] for key in file.files if key.startswith(name)}
    images = jnp.asarray(stored["input"].transpose(0, 2, 3, 1))
    maps = jax.jit(lambda state, x: nnx.merge(graph, state)(x))(state, images)
    found = dict(zip(("stage0", "stage1", "stage2", "stage4", "head"), maps, strict=True))
    for part, x in found.items():
        wanted = stored[part]
        assert_close(np.asarray(x).transpose(0, 3, 1, 2)[:, : wanted.shape[1]], wanted)
    pooled = np.asarray(maps[-1]).mean((1, 2))
    assert_close(pooled, stored["pooled"])
    assert_close(pooled @ arrays["_fc.weight"].T + arrays["_fc.bias"], stored["logits"])
