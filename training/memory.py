"""Memory of freed tensors stays with the process that trains."""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
"""Of glibc's malloc.h, for ``mallopt(3)``."""
ALWAYS, STEP_BYTES = 2**31 - 1, 64 << 20


def keep_freed() -> bool:
    """Take large tensors from memory that was freed before; returns whether this C library can be told to.

    By default glibc gives each of them back to the kernel, which clears its pages anew: at every step of a training on
    the CPU, of which that was half the time (docs/decisions.md). What a process had at its peak it keeps until it ends.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return False
    options = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, ALWAYS), (M_TOP_PAD, STEP_BYTES))
    return all([mallopt(option, value) for option, value in options])
