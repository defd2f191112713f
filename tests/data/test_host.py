"""What the machine offers to this process."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest

from ssole import runtime as host
from ssole.runtime import total_memory, usable_cpus


def test_total_memory_is_plausible() -> None:
    assert 1 << 26 < total_memory() < 1 << 50


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, math.inf),
        ({"cpu.max": "max 100000\n"}, math.inf),
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "nonsense"}, math.inf),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, math.inf),
        ({"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 0.5),
    ],
)
def test_the_share_of_a_container(tmp_path: Path, files: dict[str, str], expected: float) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert host._cpu_quota(tmp_path) == expected


@pytest.mark.parametrize(("quota", "expected"), [(math.inf, 8), (20.0, 8), (2.5, 3), (0.1, 1)])
def test_usable_cpus_are_those_bound_to_and_granted(
    monkeypatch: pytest.MonkeyPatch, quota: float, expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    monkeypatch.setattr(host, "_cpu_quota", lambda groups: quota)
    assert usable_cpus() == expected
