"""How much of what the devices could compute a step uses (model FLOP/s utilisation, MFU).

Source of the measure: Chowdhery et al. 2022 (PaLM), appendix B. What the model needs is counted in
the program before the compiler changes it, so recomputation for memory's sake (remat) counts too.
"""

from collections.abc import Mapping
from types import MappingProxyType

import jax
from jaxtyping import PyTree

from wsss_jax.train.parallel import Compiled, Device

PEAKS: Mapping[str, float] = MappingProxyType(
    {
        "A100": 312e12,
        "H100": 989e12,
        "H200": 989e12,
        "B200": 2250e12,
        "TPU v4": 275e12,
        "TPU v5 lite": 197e12,
        "TPU v5p": 459e12,
        "TPU v6 lite": 918e12,
    }
)
"""Dense bfloat16 FLOP/s of one device as its maker publishes it, by a part of its name."""


def peak(devices: list[Device]) -> float | None:
    """What these devices can compute together in FLOP/s; None where that is not known (CPUs)."""
    kinds = [device.device_kind for device in devices]
    known = [next((p for name, p in PEAKS.items() if name in kind), None) for kind in kinds]
    return None if None in known else sum(p for p in known if p is not None)


def flops(step: Compiled, *arguments: PyTree) -> float | None:
    """Floating-point operations of one call of a jitted function; None where JAX cannot count."""
    costs = step.lower(*arguments).cost_analysis()
    return costs.get("flops") if isinstance(costs, dict) else None


class Utilisation:
    """Adds up the operations of steps; ``share`` says what part of the peak they were.

    Counting lowers the step once more for each new shape of batch, so it is done only where the
    peak is known.
    """

    def __init__(self, devices: list[Device] | None = None) -> None:
        self.peak = peak(jax.devices() if devices is None else devices)
        self.known: dict[tuple[tuple[int, ...], ...], float | None] = {}
        self.done: float | None = 0.0

    def add(self, step: Compiled, *arguments: PyTree) -> None:
        """Count one call, of a state, a batch and a key; to be called before it is made."""
        if self.peak is None:
            return
        shapes = tuple(x.shape for x in jax.tree.leaves(arguments[1]))
        if shapes not in self.known:
            self.known[shapes] = flops(step, *arguments)
        count = self.known[shapes]
        self.done = None if self.done is None or count is None else self.done + count

    def share(self, seconds: float) -> float | None:
        """Of the peak in the time since the last call, in [0, 1]; None where it is not known."""
        done, self.done = self.done, 0.0
        if self.peak is None or not done:
            return None
        return done / max(seconds, 1e-9) / self.peak
