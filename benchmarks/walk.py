"""The random walk against what others do, side by side in one run, as a table of ratios.

256 steps, radius 5, beta 8, 4 score maps, at stride 8 (47 by 63) and stride 4 (94 by 125) of a
375 by 500 photograph. Peers, each written here from the formula:

* dense squaring in torch, as PSA and IRN do: an (h·w)² matrix, squared eight times,
* scipy CSR and torch sparse CSR (int32 indices), 256 sparse products, matrix READY,
* torch sparse CSR with our Chebyshev series, so that both run the same algorithm.

Our rows include the power and the row sums; the peers' sparse rows do not, which favours them.
Peak memory is the highest resident size during one call above that before it (0 where the
allocator had the memory already); for ours the compiler's own figure, weights included.

    python benchmarks/walk.py --threads 1 --peers

On a shared host quote the process-CPU time at one thread. At stride 4 one of the eight dense
squarings is timed and counted eight times, unless --all-squarings. Without torch the torch rows are
left out, with a message.
"""

import argparse
import importlib.util
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

GRIDS = ((47, 63), (94, 125))
RADIUS, BETA, STEPS, CHANNELS = 5, 8, 256, 4
DENSE, CSR, SCIPY = "torch dense squaring", "torch sparse CSR x256", "scipy CSR x256"
CSR_CHEBYSHEV = "torch sparse CSR Chebyshev"


class Row(NamedTuple):
    """One method on one grid: seconds (least of the repeats), extra bytes, largest error."""

    name: str
    cpu: float
    wall: float
    memory: float
    error: float


def problem(height: int, width: int):
    """Scores, affinity and the dense float64 answer by repeated sparse products."""
    import jax.numpy as jnp
    import numpy as np
    from scipy.ndimage import gaussian_filter

    from wsss_jax.ops import affinity

    generator = np.random.default_rng(0)
    image = gaussian_filter(generator.random((height, width, 3)), (3, 3, 0))
    image = (image - image.min()) / (image.max() - image.min())
    scores = generator.random((height, width, CHANNELS)).astype(np.float32)
    pairs = affinity.from_colour(
        jnp.asarray(image, jnp.float32), radius=RADIUS, sigma_colour=0.3, sigma_space=5.0
    )
    matrix, flat = transition(pairs), scores.reshape(-1, CHANNELS).astype(np.float64)
    for _ in range(STEPS):
        flat = matrix @ flat
    return scores, pairs, matrix.astype(np.float32), flat.reshape(scores.shape)


def transition(pairs: Any):
    """T as a scipy CSR matrix with int32 indices, in float64."""
    import numpy as np
    import scipy.sparse as sparse

    from wsss_jax.ops import walk

    first, second, values = (np.asarray(a) for a in walk.as_sparse(pairs))
    keep, nodes = values > 0, int(np.prod(pairs.values.shape[-2:]))
    half = sparse.coo_array(
        (values[keep].astype(np.float64) ** BETA, (first[keep], second[keep])), (nodes, nodes)
    )
    weights = (half + half.T + sparse.eye_array(nodes)).tocsr()
    return (sparse.diags_array(1 / weights.sum(1)) @ weights).tocsr()


def resident(name: str) -> int:
    """A memory figure of this process in bytes: VmRSS now, VmHWM at its highest."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return 1024 * int(line.split()[1])
    return 0


def measure(name: str, call: Callable[[], Any], answer: Any, repeats: int) -> Row:
    """Time a call after one warm-up, which also shows the peak of memory."""
    import numpy as np

    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    before = resident("VmRSS")
    result = np.asarray(call())
    memory = max(0, resident("VmHWM") - before)
    cpu, wall = [], []
    for _ in range(repeats):
        start_cpu, start = time.process_time(), time.perf_counter()
        call()
        cpu.append(time.process_time() - start_cpu)
        wall.append(time.perf_counter() - start)
    error = float(np.abs(result.reshape(answer.shape) - answer).max())
    return Row(name, min(cpu), min(wall), memory, error)


def ours(scores: Any, pairs: Any, answer: Any, repeats: int) -> list[Row]:
    """Our routes, compiled beforehand; everything from affinity to result is timed."""
    import jax
    import jax.numpy as jnp

    from wsss_jax.ops import affinity, walk

    def graph(s: Any, p: Any):
        flat = s.reshape(-1, s.shape[-1])
        return walk.propagate_graph(flat, walk.as_sparse(p), beta=BETA, steps=STEPS)

    small = affinity.compact(pairs, beta=BETA)
    routes = {
        "ours: Chebyshev (default)": (
            lambda s, p: walk.propagate(s, p, beta=BETA, steps=STEPS), pairs, None),
        "ours: Chebyshev, 512-bit vectors": (
            lambda s, p: walk.propagate(s, p, beta=BETA, steps=STEPS), pairs,
            {"xla_cpu_prefer_vector_width": 512}),
        "ours: Chebyshev, bfloat16 storage": (
            lambda s, p: walk.propagate(s, p, beta=1, steps=STEPS), small, None),
        "ours: stepwise x256": (
            lambda s, p: walk.propagate_stepwise(s, p, beta=BETA, steps=STEPS), pairs, None),
        "ours: graph, Chebyshev": (graph, pairs, None),
    }  # fmt: skip
    rows = []
    for name, (function, values, options) in routes.items():
        arguments = (jnp.asarray(scores), values)
        compiled = jax.jit(function, compiler_options=options).lower(*arguments).compile()

        def call(compiled: Any = compiled, arguments: Any = arguments):
            return jax.block_until_ready(compiled(*arguments))

        row, plan = measure(name, call, answer, repeats), compiled.memory_analysis()
        if plan:
            row = row._replace(memory=plan.temp_size_in_bytes + plan.output_size_in_bytes)
        rows.append(row)
    return rows


def peers(scores: Any, matrix: Any, answer: Any, repeats: int, all_squarings: bool) -> list[Row]:
    """scipy always, torch where it is installed."""
    import numpy as np

    flat = np.ascontiguousarray(scores.reshape(-1, CHANNELS))

    def by_scipy():
        x = flat
        for _ in range(STEPS):
            x = matrix @ x
        return x

    rows = [measure(SCIPY, by_scipy, answer, repeats)]
    if importlib.util.find_spec("torch"):
        rows += torch_peers(flat, matrix, answer, repeats, all_squarings)
    return rows


def torch_peers(flat: Any, matrix: Any, answer: Any, repeats: int, all_squarings: bool):
    """The three torch rows: CSR stepping, CSR with our series, and the dense matrix of PSA."""
    import warnings

    import torch

    from wsss_jax.ops import walk

    warnings.filterwarnings("ignore", message="Sparse ")  # beta notices of torch's CSR
    indices = (torch.from_numpy(a.astype("int32")) for a in (matrix.indptr, matrix.indices))
    csr = torch.sparse_csr_tensor(*indices, torch.from_numpy(matrix.data), matrix.shape)
    start, series = torch.from_numpy(flat), list(walk.coefficients(STEPS, 1e-4) or ())

    def stepping():
        x = start
        for _ in range(STEPS):
            x = csr @ x
        return x

    def chebyshev():
        latest, before = series[-1] * start, torch.zeros_like(start)
        for c in series[-2:0:-1]:
            latest, before = 2 * (csr @ latest) - before + (c * start if c else 0), latest
        return series[0] * start + csr @ latest - before

    dense = torch.from_numpy(matrix.toarray())
    squarings = STEPS.bit_length() - 1
    few = dense.shape[0] > 5000 and not all_squarings

    def squaring():
        power = dense
        for _ in range(1 if few else squarings):
            power = power @ power
        return power @ start

    row = measure(DENSE, squaring, answer, 1 if few else min(3, repeats))
    if few:
        scaled = {"cpu": row.cpu * squarings, "wall": row.wall * squarings, "error": float("nan")}
        row = row._replace(name=f"{DENSE} (8 x one squaring)", **scaled)
    return [
        measure(CSR, stepping, answer, repeats),
        measure(CSR_CHEBYSHEV, chebyshev, answer, repeats),
        row,
    ]


def show(rows: list[Row], size: tuple[int, int]) -> None:
    """One grid's table; ratios are a peer's process-CPU time over ours, default route."""
    own = rows[0]
    print(f"\n{size[0]} by {size[1]} grid, {STEPS} steps, radius {RADIUS}, {CHANNELS} maps")
    print(f"{'method':<44}{'cpu ms':>11}{'wall ms':>11}{'x cpu':>9}{'x wall':>9}{'MB':>9}  error")
    for row in rows:
        print(
            f"{row.name:<44}{1e3 * row.cpu:>11.2f}{1e3 * row.wall:>11.2f}"
            f"{row.cpu / own.cpu:>9.2f}{row.wall / own.wall:>9.2f}{row.memory / 1e6:>9.1f}"
            f"  {row.error:.1e}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=1, help="threads of XLA and torch")
    parser.add_argument("--repeats", type=int, default=15, help="timed calls, of which the least")
    parser.add_argument("--peers", action="store_true", help="also time scipy and torch")
    parser.add_argument("--all-squarings", action="store_true", help="all eight at stride 4 too")
    settings = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(settings.threads)
    if hasattr(os, "sched_setaffinity"):  # XLA sizes its thread pool by the cores it may use
        cores = sorted(os.sched_getaffinity(0))[-settings.threads :]
        os.sched_setaffinity(0, cores)
    if settings.peers and not importlib.util.find_spec("torch"):
        print("torch is not installed: its rows are left out (pip install 'wsss-jax[convert]')")
    print(f"threads {settings.threads}, load {os.getloadavg()[0]:.1f}, {settings.repeats} repeats")
    for size in GRIDS:
        scores, pairs, matrix, answer = problem(*size)
        rows = ours(scores, pairs, answer, settings.repeats)
        if settings.peers:
            rows += peers(scores, matrix, answer, settings.repeats, settings.all_squarings)
        show(rows, size)


if __name__ == "__main__":
    main()
