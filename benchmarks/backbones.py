"""Backbones against timm on PyTorch: forward, and forward with backward, as ratios, on processors.

Command: python benchmarks/backbones.py [--only vit_small] [--batch 4] [--threads 2] [--repeats 5]
Needs torch 2.13.0 and timm (pip install timm==1.0.31 torchvision==0.28.0 --no-deps) beside us.
Both sides run in one process on the same weights (timm's random ones, through our importer) and the
same images, in turns A B A B, in float32, with the statistics of BatchNorm frozen; the loss of the
backward pass is the mean square of the last map. A ratio above one means that we are faster. The
maps are compared first: a benchmark of another network would say nothing.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

PAIRS = {  # ours, its settings, timm's name, pixels
    "resnet50": ({"output_stride": 32}, "resnet50", 256),
    "resnest50": ({"output_stride": 32}, "resnest50d", 256),
    "vit_small": ({"output_stride": 16}, "vit_small_patch16_224", 224),
    "dinov2_vits14": ({}, "vit_small_patch14_dinov2", 518),
    "efficientnet_lite0": ({"output_stride": 32}, "tf_efficientnet_lite0", 224),
}


def ours(name: str, options: dict, weights: dict, images: Any) -> dict[str, Callable[[], Any]]:
    """Our two calls on these weights."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from wsss_jax.backbones import BACKBONES
    from wsss_jax.weights import loading as door

    module: Any = nnx.eval_shape(lambda: BACKBONES[name](rngs=nnx.Rngs(0), **options))
    door.fill(module, weights, called=f"timm's {name}")
    graph, params, rest = nnx.split(module, nnx.Param, ...)
    x = jnp.asarray(images.transpose(0, 2, 3, 1))

    def forward(params: Any, x: Any) -> Any:
        return nnx.merge(graph, params, rest, copy=True)(x)[-1]

    run = jax.jit(forward)
    back = jax.jit(jax.value_and_grad(lambda params, x: jnp.square(forward(params, x)).mean()))
    found = {}
    for title, call in (("forward", run), ("forward+backward", back)):
        begin = time.perf_counter()
        compiled = call.lower(params, x).compile()
        print(f"{name} {title}: compiled in {time.perf_counter() - begin:.1f} s", flush=True)
        found[title] = lambda compiled=compiled: jax.block_until_ready(compiled(params, x))
    return found


def theirs(model: Any, images: Any) -> dict[str, Callable[[], Any]]:
    """timm's two calls."""
    import torch

    x = torch.from_numpy(images)

    def forward() -> Any:
        with torch.inference_mode():
            return model.forward_features(x)

    def back() -> Any:
        model.zero_grad(set_to_none=True)
        model.forward_features(x).square().mean().backward()

    return {"forward": forward, "forward+backward": back}


def compare(our_map: Any, their_map: Any) -> float:
    """Largest difference of the last maps, as a share of the largest magnitude."""
    import numpy as np

    a, b = np.asarray(our_map), their_map.numpy()
    b = b.transpose(0, 2, 3, 1) if b.ndim == 4 else b[:, 1:].reshape(a.shape)
    return float(np.abs(a - b).max() / np.abs(b).max())


def seconds(call: Callable[[], Any]) -> float:
    """Wall time of one call."""
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def measure(name: str, given: argparse.Namespace) -> None:
    """Print one row for each of the two calls."""
    import numpy as np
    import timm
    import torch

    options, their_name, pixels = PAIRS[name]
    torch.manual_seed(0)
    model = timm.create_model(their_name, pretrained=False).eval()
    weights = {key: value.numpy() for key, value in model.state_dict().items()}
    shape = (given.batch, 3, pixels, pixels)
    images = np.random.default_rng(0).standard_normal(shape, np.float32)
    a, b = ours(name, options, weights, images), theirs(model, images)
    error = compare(a["forward"](), b["forward"]())
    if error > 1e-3:
        raise SystemExit(f"{name}: maps differ by {error:.1e} of the largest value; no comparison")
    for title in a:
        for side in (a, b):  # caches and lazy set-up
            side[title]()
        times = [(seconds(a[title]), seconds(b[title])) for _ in range(given.repeats)]
        ratio = statistics.median(t / o for o, t in times)
        best = [min(column) * 1e3 for column in zip(*times, strict=True)]
        print(
            f"{name} {title}, {given.batch} x {pixels} x {pixels}: ours {best[0]:.0f} ms, torch "
            f"{best[1]:.0f} ms, ratio {ratio:.2f} (median of {given.repeats} pairs; of the least "
            f"{best[1] / best[0]:.2f}); maps differ by {error:.0e}; load {os.getloadavg()[0]:.1f}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=PAIRS, default=None)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(given.threads)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: given.threads])
    import torch

    torch.set_num_threads(given.threads)
    for name in PAIRS if given.only is None else (given.only,):
        measure(name, given)


if __name__ == "__main__":
    main()
