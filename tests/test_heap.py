"""Freed memory is kept: later steps ask the system for nothing."""

from __future__ import annotations

import resource
import subprocess
import sys
import textwrap

import pytest

PROGRAM = """
    import resource, torch
    from ssole.heap import keep_freed_memory, reuse_freed_blocks
    {first}
    torch.set_num_threads(1)
    def step():
        [torch.ones({floats}) for _ in range(8)]
    step(), step()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        step()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(first: str, floats: int) -> float:
    """Pages that five steps take anew, as a share of those that they write to."""
    program = textwrap.dedent(PROGRAM.format(first=first, floats=floats))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return int(done.stdout) / (5 * 8 * 4 * floats / resource.getpagesize())


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
@pytest.mark.parametrize(
    ("function", "floats"),
    [("keep_freed_memory", 9_000_000), ("keep_freed_memory", 1_000_000), ("reuse_freed_blocks", 1_000_000)],
)
def test_steps_take_no_new_pages(function: str, floats: int) -> None:
    assert faults("pass", floats) > 0.05  # the reason for it all; huge pages make fewer of them
    assert faults(f"{function}()", floats) < 0.01
