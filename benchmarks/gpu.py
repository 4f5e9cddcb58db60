"""Training, random walk and dense CRF on an accelerator: images/s, and the share of its peak.

Command: python benchmarks/gpu.py [--only vit_base_448 walk] [--seconds 20] [--tiny]
Training is one whole step of the classifier in bfloat16 on random weights and images, already on
the device; its share of the peak is counted as `wsss train` does (wsss_jax/train/utilisation.py).
Beside it stands timm's network of the same name under torch.compile, with autocast and AdamW, where
torch, timm and CUDA are installed. Every part stops after so many seconds of measuring, compilation
apart, so all of them end within five minutes. ``--tiny`` tries all parts on any processor in
seconds, and its numbers say nothing. Not measured on a GPU yet.
"""

import argparse
import importlib.util
import time
from collections.abc import Callable
from typing import Any, NamedTuple

PARTS = {  # backbone of ours, timm's, pixels, images a step
    "resnet38d_448": ("resnet38d", None, 448, 16),
    "resnest101_512": ("resnest101", "resnest101e", 512, 16),
    "vit_base_448": ("vit_base", "vit_base_patch16_224", 448, 32),
}
SIZES = {"walk": (94, 125, 16), "crf": (375, 500, 8)}  # height, width, images a call
TINY_PARTS = {"tiny_32": ("tiny", None, 32, 2)}
TINY_SIZES = {"walk": (6, 8, 2), "crf": (12, 16, 2)}


class Row(NamedTuple):
    """One measurement. share: of the device's peak, in [0, 1]; None where that is not known."""

    name: str
    images_per_second: float
    compile_seconds: float
    share: float | None = None


def rate(call: Callable[[], Any], images: int, seconds: float) -> float:
    """Images per second of repeated calls; each has ended before the next begins."""
    done, begin = 0, time.perf_counter()
    while (spent := time.perf_counter() - begin) < seconds or not done:
        call()
        done += images
    return done / max(spent, time.perf_counter() - begin)


def train(name: str, part: tuple[str, Any, int, int], seconds: float) -> Row:
    """Steps of the classifier on one backbone."""
    import jax
    import numpy as np

    from wsss_jax.systems import classifier
    from wsss_jax.train import utilisation
    from wsss_jax.train.loop import in_type
    from wsss_jax.train.optimizers import Optim
    from wsss_jax.types import Batch

    backbone, _, side, count = part
    stride = 8 if backbone == "resnet38d" else 16
    settings = classifier.Classifier(backbone, output_stride=stride, optim=Optim("adamw"))
    system = classifier.make(settings, classes=20, steps=1000)
    rng, key = np.random.default_rng(0), jax.random.key(0)
    images = rng.random((count, side, side, 3), np.float32)
    real = (np.ones((count, side, side), bool), np.ones(count, bool))
    fed = (images, rng.random((count, 20)) > 0.9, *real)
    batch = Batch(*(jax.device_put(array) for array in fed))
    step = jax.jit(in_type(system.step, "bfloat16"), donate_argnums=0)
    state, begin = system.init(key), time.perf_counter()
    peak = utilisation.peak(jax.devices()[:1])
    work = None if peak is None else utilisation.flops(step, state, batch, key)
    state, _ = jax.block_until_ready(step(state, batch, key))
    compiled = time.perf_counter() - begin

    def call() -> None:
        nonlocal state
        state, _ = jax.block_until_ready(step(state, batch, key))

    found = rate(call, count, seconds)
    share = None if peak is None or work is None else found / count * work / peak
    return Row(name, found, compiled, share)


def train_torch(name: str, part: tuple[str, Any, int, int], seconds: float) -> Row | None:
    """The same of timm's network, compiled; None where it cannot run here."""
    wanted = ("torch", "timm")
    if part[1] is None or any(importlib.util.find_spec(module) is None for module in wanted):
        return None
    import timm
    import torch

    if not torch.cuda.is_available():
        return None
    _, called, side, count = part
    sized = {"img_size": side} if called.startswith("vit") else {}
    model = timm.create_model(called, num_classes=20, **sized).cuda().train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)
    images = torch.rand(count, 3, side, side, device="cuda")
    labels = (torch.rand(count, 20, device="cuda") > 0.9).float()

    @torch.compile
    def loss_of() -> Any:
        with torch.autocast("cuda", torch.bfloat16):
            logits = model(images)
        return torch.nn.functional.binary_cross_entropy_with_logits(logits.float(), labels)

    def call() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss_of().backward()
        optimizer.step()
        torch.cuda.synchronize()

    begin = time.perf_counter()
    call()
    compiled = time.perf_counter() - begin
    return Row(f"{name}, torch compiled", rate(call, count, seconds), compiled)


def walk(size: tuple[int, int, int], seconds: float) -> Row:
    """256 steps of the random walk, radius 5, of four maps an image."""
    import jax
    import numpy as np

    from wsss_jax.ops import affinity
    from wsss_jax.ops import walk as walks

    height, width, count = size
    rng = np.random.default_rng(0)
    colours = jax.device_put(rng.random((count, height, width, 3), np.float32))
    scores = jax.device_put(rng.random((count, height, width, 4), np.float32))

    @jax.jit
    def run(colours: Any, scores: Any) -> Any:
        pairs = affinity.from_colour(colours, radius=5, sigma_colour=0.1, sigma_space=5.0)
        return walks.propagate(scores, pairs, beta=8, steps=256)

    return _measured("walk", lambda: run(colours, scores), count, seconds)


def crf(size: tuple[int, int, int], seconds: float) -> Row:
    """Ten iterations of the dense CRF of PSA with four labels, lattices built on the device."""
    import jax
    import numpy as np

    from wsss_jax.crf import dense

    height, width, count = size
    rng = np.random.default_rng(0)
    images = jax.device_put(rng.integers(0, 256, (count, height, width, 3), np.uint8))
    chances = jax.device_put(rng.random((count, height, width, 4), np.float32))
    settings = dense.PRESETS["psa"]
    return _measured("crf", lambda: dense.refine_batch(images, chances, settings), count, seconds)


def measure(only: list[str], seconds: float, *, tiny: bool) -> list[Row]:
    """The wanted parts, all where none is named."""
    parts, sizes = (TINY_PARTS, TINY_SIZES) if tiny else (PARTS, SIZES)
    found: list[Row | None] = []
    for name, part in parts.items():
        if not only or name in only:
            found += [train(name, part, seconds), train_torch(name, part, seconds)]
    for name, function in (("walk", walk), ("crf", crf)):
        if not only or name in only:
            found.append(function(sizes[name], seconds))
    return [row for row in found if row is not None]


def table(rows: list[Row]) -> str:
    """The rows in Markdown."""
    lines = ["| part | images/s | of peak | compiled in |", "|---|--:|--:|--:|"]
    for row in rows:
        share = "–" if row.share is None else f"{100 * row.share:.0f} %"
        lines.append(
            f"| {row.name} | {row.images_per_second:.1f} | {share} | {row.compile_seconds:.0f} s |"
        )
    return "\n".join(lines)


def _measured(name: str, run: Callable[[], Any], count: int, seconds: float) -> Row:
    import jax

    begin = time.perf_counter()
    jax.block_until_ready(run())
    compiled = time.perf_counter() - begin
    return Row(name, rate(lambda: jax.block_until_ready(run()), count, seconds), compiled)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", default=[], choices=[*PARTS, *SIZES, *TINY_PARTS])
    parser.add_argument("--seconds", type=float, default=20.0, help="of measuring, each part")
    parser.add_argument("--tiny", action="store_true", help="try all parts on any processor")
    given = parser.parse_args()

    import jax

    print(f"device: {jax.devices()[0].device_kind}")
    seconds = min(given.seconds, 0.1) if given.tiny else given.seconds
    print(table(measure(given.only, seconds, tiny=given.tiny)))


if __name__ == "__main__":
    main()
