"""Freed memory is kept: later steps ask the system for nothing."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

PROGRAM = """
    import resource, torch
    from ssole.runtime import keep_freed_memory, reuse_freed_blocks
    {first}
    torch.set_num_threads(1)
    def taken(floats, times, blocks=1):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(times):
            [torch.ones(floats) for _ in range(blocks)]
        pages = 4 * floats * blocks / resource.getpagesize()
        return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / pages
    print({what})
"""


def outcome(first: str, what: str) -> float:
    program = textwrap.dedent(PROGRAM.format(first=first, what=what))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return float(done.stdout)


linux = pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")


@linux
def test_large_blocks_that_are_kept_take_pages_once() -> None:
    """Of 36 MB, beyond what glibc ever keeps by itself; in units of the block's own pages."""
    assert outcome("pass", "taken(9_000_000, 5)") > 4.5
    assert outcome("assert keep_freed_memory()", "taken(9_000_000, 5)") < 2.5


@linux
def test_several_smaller_blocks_that_are_reused_take_pages_once() -> None:
    """Of 3 MB each: by itself glibc gives what is free beyond twice the largest back, and maps it again."""
    assert outcome("pass", "taken(750_000, 8, blocks=6)") > 1.8  # 2.1 or 8, as the heap happens to lie
    assert outcome("reuse_freed_blocks()", "taken(750_000, 8, blocks=6)") < 1.6
