"""Memory that is freed and asked for again in every step."""

from __future__ import annotations

import ctypes
import sys
from functools import lru_cache

import torch

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


@lru_cache(maxsize=1)
def reuse_freed_blocks() -> None:
    """Have glibc reuse freed blocks of up to 32 MB from now on; what it would come to by itself after freeing one.

    It maps large blocks anew each time they are asked for, "large" being what the largest block freed so far was, up to
    32 MB, and gives back what is free beyond twice that. Freeing one of that size, which nobody ever touched, sets the
    limit. Nothing changes that a program would not meet anyway, so this is for library calls: 512 blurred views of 32
    pixels are made 1.3 times faster.
    """
    torch.empty(31 << 20, dtype=torch.uint8)
