"""Large blocks of memory in large pages: a training step on a CPU spends a third less time.

A step allocates and frees gigabytes. glibc maps every block above 32 MB afresh, and the kernel
zeroes all of it in pages of 4 KiB: 40 % of a MobileNetV2 step at 16 × 288 × 288 was system time
(``benchmarks/step.py``). Large pages are asked for by a variable that glibc reads at the start of
a process, so the process starts once more. Keeping freed memory (``mallopt``) was faster still, but
its fragments grew to 14 GB.
"""

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
