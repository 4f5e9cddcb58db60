"""Families of vision transformers: DINOv2, CLIP, DeiT; their outputs, taps and weight names."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from golden_weights import assert_close

from wsss_jax.models import build


def test_dinov2_gives_the_reference_tokens(shared):
    with np.load(shared / "golden/networks/dinov2_vits14.npz") as file:
        stored = {name: file[name] for name in file.files}
    path = shared / "weights/dinov2_vits14_fp16.npz"
    module = build.backbone("dinov2_vits14", rngs=nnx.Rngs(0), output_stride=14, pretrained=path)
    graph, state = nnx.split(module)
    run = jax.jit(lambda state, x: nnx.merge(graph, state).tokens(x))
    for name in ("square", "wide"):
        images = jnp.asarray(stored[f"{name}/input"].transpose(0, 2, 3, 1))
        assert_close(run(state, images), stored[f"{name}/tokens"])
