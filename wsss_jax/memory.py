"""Large blocks of memory in large pages, and freed memory given back.

A training step on a CPU spends a third less time with large pages: it allocates and frees
gigabytes. glibc maps every block above 32 MB afresh, and the kernel
zeroes all of it in pages of 4 KiB: 40 % of a MobileNetV2 step at 16 × 288 × 288 was system time
(``benchmarks/step.py``). Large pages are asked for by a variable that glibc reads at the start of
a process, so the process starts once more. Keeping freed memory (``mallopt``) was faster still, but
its fragments grew to 14 GB.

Smaller blocks are kept by glibc when they are freed, and every step of a recipe leaves some hundred
megabytes of them behind, which the next one does not use: ``give_back`` returns them.
"""

import ctypes
import os
import sys
from collections.abc import Mapping

from wsss_jax import signals

VARIABLE, SETTING = "GLIBC_TUNABLES", "glibc.malloc.hugetlb=1"


def environment(current: Mapping[str, str]) -> dict[str, str]:
    """The environment in which large blocks use large pages, where the C library is glibc."""
    tunables = current.get(VARIABLE, "")
    if SETTING.split("=")[0] in tunables:
        return dict(current)
    return {**current, VARIABLE: f"{tunables}:{SETTING}".lstrip(":")}


def restart_with_large_pages() -> None:
    """Start this very command again with large pages, unless that was done or has no effect here.

    Call it before anything is done: the process is replaced and does not return.
    """
    wanted = environment(os.environ)
    if sys.platform.startswith("linux") and wanted != dict(os.environ):
        signals.hold()  # Python's own start would end in a traceback
        os.execve(sys.executable, sys.orig_argv, wanted)


def give_back() -> None:
    """Return freed memory to the system, where the C library is glibc; elsewhere it does nothing.

    Call it before a step that may need much, not in a loop: it walks through all freed blocks.
    """
    if sys.platform.startswith("linux"):
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        if trim is not None:
            trim(0)
