"""Memory and processors that this process may use."""

from __future__ import annotations

import io
import os
from typing import Any

import pytest

from ssole.runtime import decoding_threads, total_memory, usable_cpus


def test_total_memory_is_plausible() -> None:
    assert 1 << 26 < total_memory() < 1 << 50


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 8),
        ({"cpu.max": "max 100000\n"}, 8),
        ({"cpu.max": "2000000 100000\n"}, 8),
        ({"cpu.max": "250000 100000\n"}, 3),
        ({"cpu.max": "10000 100000\n"}, 1),
        ({"cpu.max": "nonsense"}, 8),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 8),
        ({"cpu/cpu.cfs_quota_us": "150000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2),
        ({"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1),
    ],
)
def test_usable_cpus_are_those_bound_to_and_granted(
    monkeypatch: pytest.MonkeyPatch, files: dict[str, str], expected: int
) -> None:
    """A machine of 16 processors, 8 of them for this process, in containers of both versions of control groups."""
    groups = {f"/sys/fs/cgroup/{name}": text for name, text in files.items()}
    real_open, real_exists = open, os.path.exists

    def exists(path: Any) -> bool:
        return path in groups if str(path).startswith("/sys/fs/cgroup") else real_exists(path)

    def opened(path: Any, *arguments: Any, **options: Any) -> Any:
        return io.StringIO(groups[path]) if path in groups else real_open(path, *arguments, **options)

    import joblib  # noqa: F401 - before files are replaced

    monkeypatch.delenv("LOKY_MAX_CPU_COUNT", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    monkeypatch.setattr(os.path, "exists", exists)
    monkeypatch.setattr("builtins.open", opened)
    assert usable_cpus() == expected


def test_decoding_threads_are_at_most_16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ssole.runtime.usable_cpus", lambda: 64)
    assert decoding_threads() == 16
