"""Explanations beside pytorch-grad-cam on PyTorch, as ratios; and whether attributions add up.

Commands: TQDM_DISABLE=1 python benchmarks/explanations.py [--methods grad_cam] [--masks 1000]
          python benchmarks/explanations.py --sums        (no PyTorch needed)
Needs torch 2.13.0, timm 1.0.31, torchvision 0.28.0 (--no-deps), and pytorch-grad-cam beside us: pip
install grad-cam==1.5.7 ttach opencv-python-headless scikit-learn joblib threadpoolctl (--no-deps).
Both sides run in one process on the same weights (timm's random ones, through our importer) and the
same images, in turns A B A B, in float32, on ResNet-18. Maps are compared first: theirs are
rectified, stretched, resized and stretched again, so ours are too. A ratio above one means that we
are faster. RISE is not in pytorch-grad-cam; it is compared with a plain torch loop over the masks
that we drew. Memory is how far the resident set rises during a call, of the largest call.
"""

import argparse
import ctypes
import os
import statistics
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

CLASSES = 20
PER_IMAGE = 3
"""Classes explained per image."""

Call = Callable[[], np.ndarray]


class Case(NamedTuple):
    """One network on both sides: ours as a scorer with weights, theirs as a torch model."""

    scorer: Any
    model: Any
    images: np.ndarray
    labels: np.ndarray


def case(given: argparse.Namespace) -> Case:
    """ResNet-18 with timm's random weights, a linear layer without bias, and random images."""
    import timm
    import torch
    from flax import nnx

    from wsss_jax.backbones import BACKBONES
    from wsss_jax.weights import loading as door

    torch.manual_seed(0)
    model = timm.create_model("resnet18", pretrained=False, num_classes=CLASSES).eval()
    with torch.no_grad():
        model.fc.bias.zero_()
        model.fc.weight.mul_(20)
    weights = {key: value.numpy() for key, value in model.state_dict().items()}
    module: Any = nnx.eval_shape(lambda: BACKBONES["resnet18"](rngs=nnx.Rngs(0), output_stride=32))
    backbone = {key: value for key, value in weights.items() if not key.startswith("fc.")}
    door.fill(module, backbone, called="timm's resnet18")
    rng = np.random.default_rng(0)
    shape = (given.batch, given.side, given.side, 3)
    images = rng.standard_normal(shape, np.float32)
    # The classes found, as one explains: of a negative score Ablation-CAM has two readings.
    with torch.inference_mode():
        logits = model(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    labels = np.zeros((given.batch, CLASSES), bool)
    np.put_along_axis(labels, np.argsort(-logits, axis=1)[:, :PER_IMAGE], True, axis=1)
    ours = (nnx.split(module, nnx.Param, ...), weights["fc.weight"])
    return Case(ours, model, images, labels)


def ours(case: Case, name: str, given: argparse.Namespace) -> Call:
    """Our maps of all label classes (b,H,W,c), finished as theirs are."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from wsss_jax.explain import EXPLAINERS, normalise, perturb
    from wsss_jax.ops import images as image_ops
    from wsss_jax.types import Scorer

    (graph, params, rest), linear = case.scorer
    explain = EXPLAINERS[name]
    if name == "rise":
        explain = partial(
            perturb.rise, key=jax.random.key(0), masks=given.masks, score=jax.nn.softmax
        )

    def maps(params: Any, linear: Any, x: Any, labels: Any) -> Any:
        body = nnx.merge(graph, params, rest, copy=True)
        scorer = Scorer(lambda images: body(images)[-1], lambda a: a.mean(axis=(1, 2)) @ linear.T)
        raw = explain(scorer, x, labels)
        if name == "rise":
            return raw
        return normalise.stretch(image_ops.resize(normalise.min_max(raw), x.shape[1:3]))

    images, labels = jnp.asarray(case.images), jnp.asarray(case.labels)
    begin = time.perf_counter()
    run = jax.jit(maps).lower(params, jnp.asarray(linear), images, labels).compile()
    print(f"{name}: compiled in {time.perf_counter() - begin:.1f} s", flush=True)
    return lambda: np.asarray(run(params, jnp.asarray(linear), images, labels))


def theirs(case: Case, name: str, given: argparse.Namespace) -> Call:
    """Their maps (b,H,W,c): one call for each of an image's classes, as the library wants it."""
    import torch

    x = torch.from_numpy(np.ascontiguousarray(case.images.transpose(0, 3, 1, 2)))
    if name == "rise":
        return partial(_rise, case, x, given)
    import pytorch_grad_cam
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    kind = {
        "grad_cam": pytorch_grad_cam.GradCAM,
        "score_cam": pytorch_grad_cam.ScoreCAM,
        "ablation_cam": pytorch_grad_cam.AblationCAM,
    }[name]
    order = np.argsort(~case.labels, axis=1, kind="stable")[:, :PER_IMAGE]

    def maps() -> np.ndarray:
        found = np.zeros((*case.images.shape[:3], CLASSES), np.float32)
        for slot in range(PER_IMAGE):
            with kind(model=case.model, target_layers=[case.model.layer4]) as explainer:
                targets = [ClassifierOutputTarget(int(c)) for c in order[:, slot]]
                for image, row in enumerate(explainer(input_tensor=x, targets=targets)):
                    found[image, ..., order[image, slot]] = row
        return found

    return maps


def _rise(case: Case, x: Any, given: argparse.Namespace) -> np.ndarray:
    """The plain loop: as many images at a time as ours, all classes from the same passes."""
    import jax
    import torch

    from wsss_jax.explain import perturb

    key, size = jax.random.key(0), case.images.shape[1:3]
    draw = jax.jit(
        jax.vmap(lambda i: perturb.rise_mask(jax.random.fold_in(key, i), size, cells=7, keep=0.5))
    )
    sums = torch.zeros((len(x), *size, CLASSES))
    with torch.inference_mode():
        for start in range(0, given.masks, 16):
            index = np.arange(start, min(start + 16, given.masks))
            masks = torch.from_numpy(np.array(draw(index)))
            seen = (x[None] * masks[:, None, None]).flatten(0, 1)
            scores = case.model(seen).softmax(-1).reshape(len(index), len(x), CLASSES)
            sums += torch.einsum("mbc,mhw->bhwc", scores, masks)
    return sums.numpy() / (given.masks * 0.5) * case.labels[:, None, None, :]


class Cost(NamedTuple):
    """Wall and processor seconds of a call, and by how many MB the resident set rose."""

    wall: float
    processor: float
    megabytes: float


def cost(call: Call) -> Cost:
    """Time one call while a thread watches the resident set."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    before, stop, top = _resident(), threading.Event(), [0]

    def watch() -> None:
        while not stop.wait(0.005):
            top[0] = max(top[0], _resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    wall, processor = time.perf_counter(), time.process_time()
    call()
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    stop.set()
    watcher.join()
    return Cost(wall, processor, max(top[0] - before, 0) / 2**20)


def _resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def measure(name: str, whole: Case, given: argparse.Namespace) -> None:
    """Print one row: agreement, times and memory of both sides."""
    count = given.batch if name == "grad_cam" else given.few
    part = whole._replace(images=whole.images[:count], labels=whole.labels[:count])
    a, b = ours(part, name, given), theirs(part, name, given)
    first, second = a(), b()  # which also fills caches
    error = float(np.abs(first - second).max() / np.abs(second).max())
    if not error <= 5e-3:
        raise SystemExit(
            f"{name}: maps differ by {error:.1e} of the largest value (64 pixels are the least)"
        )
    pairs = [(cost(a), cost(b)) for _ in range(given.repeats)]
    ratio = {
        field: statistics.median(getattr(t, field) / getattr(o, field) for o, t in pairs)
        for field in ("wall", "processor")
    }
    least = [min(side.wall for side in column) for column in zip(*pairs, strict=True)]
    memory = [max(side.megabytes for side in column) for column in zip(*pairs, strict=True)]
    print(
        f"| {name}, {count} x {given.side} x {given.side}, {PER_IMAGE} classes "
        f"| {least[0]:.2f} s | {least[1]:.2f} s | {ratio['wall']:.1f} | {ratio['processor']:.1f} "
        f"| {memory[0]:.0f} MB | {memory[1]:.0f} MB | {error:.0e} |",
        flush=True,
    )


def sums(given: argparse.Namespace) -> None:
    """How much of a score the attributions add up to, on random networks of ours."""
    import jax
    import jax.numpy as jnp

    from wsss_jax.explain import full_gradient, logits_of, saliency
    from wsss_jax.systems import Classifier, classifier

    images = jax.random.uniform(jax.random.key(1), (2, given.side, given.side, 3))
    inside, labels = jnp.ones(images.shape[:3], bool), jnp.eye(2, 3, dtype=bool)
    plain = Classifier("resnet18", None, 32)
    net, shape = classifier.start(plain, 3, 1, jax.random.key(0)), classifier.structure(plain, 3)

    def scorer(weights: Any) -> Any:
        return classifier.scorer(shape, *weights)(inside)

    # Weights are arguments: as constants they would be folded while compiling, for minutes.
    weights = (net.params, net.stats)
    ask = jax.jit(lambda weights, x: logits_of(scorer(weights), x))
    wanted = (ask(weights, images) - ask(weights, jnp.zeros_like(images)))[labels]
    for steps in (1, 4, 16, 64):
        rule = saliency.gauss_legendre(steps)
        run = jax.jit(
            lambda weights, rule=rule: saliency.integrated_gradients(
                scorer(weights), images, labels, nodes=rule
            )
        )
        found = run(weights).sum(axis=(1, 2))[labels]
        print(f"Integrated Gradients, {steps} nodes: {_gap(found, wanted)}", flush=True)
    one = classifier.scorer(shape, *weights)(inside[:1])
    parts = jax.jit(lambda image: full_gradient.completeness(one, image))(images[:1])
    whole = (parts.input + parts.added + parts.implied)[labels[:1]]
    print(f"FullGrad: {_gap(whole, parts.logits[labels[:1]])}", flush=True)
    _relevance(images, labels, inside)


def _relevance(images: Any, labels: Any, inside: Any) -> None:
    """How much of the relevance of a logit arrives at the tokens."""
    import jax
    import jax.numpy as jnp

    from wsss_jax.explain import relevance
    from wsss_jax.explain.relevance_rules import BASELINE, CHEFER
    from wsss_jax.systems import Classifier, classifier

    token = Classifier("vit_tiny", None, head="class_token")
    net, shape = classifier.start(token, 3, 1, jax.random.key(0)), classifier.structure(token, 3)
    for title, rules in (("of the published code", CHEFER), ("baseline", BASELINE)):

        def arrive(weights: Any, rules: Any = rules) -> Any:
            asked = classifier.attentive(shape, *weights)(inside)
            blocks = asked.record(images)[1]
            return relevance.propagated(asked, blocks, labels.astype(jnp.float32), rules)[1]

        arrived = jax.jit(arrive)((net.params, net.stats)).sum(axis=(1, 2))
        shown = ", ".join(f"{float(value):.4f}" for value in arrived)
        print(f"relevance at the tokens of vit_tiny for 1 at the logit, rules {title}: {shown}")


def _gap(found: Any, wanted: Any) -> str:
    pairs = zip(np.asarray(found), np.asarray(wanted), strict=True)
    return ", ".join(f"{f:.4f} of {w:.4f} ({abs(f - w) / abs(w):.1%} off)" for f, w in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    methods = ("grad_cam", "score_cam", "ablation_cam", "rise")
    parser.add_argument("--methods", nargs="+", choices=methods, default=methods)
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--batch", type=int, default=4, help="images of grad_cam")
    parser.add_argument("--few", type=int, default=1, help="images of the other methods")
    parser.add_argument("--masks", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--sums", action="store_true")
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(given.threads)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: given.threads])
    if given.sums:
        sums(given)
        return
    import torch

    torch.set_num_threads(given.threads)
    whole = case(given)
    print(
        "| method | ours | theirs | ratio | of processor time | memory, ours | theirs | differ by |"
    )
    print("|---|--:|--:|--:|--:|--:|--:|--:|")
    for name in given.methods:
        measure(name, whole, given)


if __name__ == "__main__":
    main()
