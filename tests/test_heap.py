"""Freed memory is kept: later steps ask the system for nothing."""

from __future__ import annotations

import resource
import subprocess
import sys
import textwrap

import pytest

PROGRAM = """
    import resource, torch
    from ssole.heap import keep_freed_memory
    if {keep}:
        assert keep_freed_memory()
    torch.set_num_threads(1)
    def step():
        torch.ones(5_000_000) + torch.ones(9_000_000)[:5_000_000]  # 20 and 36 MB
    step(), step()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        step()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(keep: bool) -> int:
    program = textwrap.dedent(PROGRAM.format(keep=keep))
    return int(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_steps_take_no_new_pages() -> None:
    pages = 5 * 56_000_000 // resource.getpagesize()
    assert faults(keep=False) > pages / 20  # the reason for it all; huge pages make fewer of them
    assert faults(keep=True) < pages / 100
