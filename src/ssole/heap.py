"""Memory that is freed and asked for again in every step."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt
_LARGE = 1 << 30  # bytes; larger blocks still go back at once


def keep_freed_memory() -> bool:
    """Have the C library keep freed blocks of up to 1 GB for the next request. Whether it does: glibc only.

    By default glibc gives blocks of some megabytes back to the system as soon as they are freed. A training step on the
    CPU allocates the same ones as the step before, and then waits for thousands of page faults while the system fills
    them with zeros: 5 to 20 % of a step in `benchmarks/step.py`. The process keeps its peak memory in exchange, which a
    training loop needs again anyway.
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # another C library, such as musl
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGE)) and bool(mallopt(_M_TRIM_THRESHOLD, _LARGE))
