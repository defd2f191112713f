"""Memory that this process may use."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ssole.errors import DataError
from ssole.memory import available_memory, check_memory, total_memory


def test_total_memory_is_plausible() -> None:
    assert 1 << 26 < total_memory() < 1 << 50


def test_windows_is_asked_how_much_memory_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(pointer: Any) -> int:
        status = pointer._obj
        assert status.length == ctypes.sizeof(status) == 64  # what Windows expects of its structure
        status.total, status.available = 6 << 30, 2 << 30
        return 1

    library = SimpleNamespace(kernel32=SimpleNamespace(GlobalMemoryStatusEx=fill))
    monkeypatch.setattr(ctypes, "windll", library, raising=False)
    monkeypatch.setattr(os, "sysconf_names", {})
    monkeypatch.setattr("ssole.memory._memory_groups", list)
    assert (total_memory(), available_memory()) == (6 << 30, 2 << 30)


def test_memory_of_files_that_were_read_is_available(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A container of 1000 bytes, of which the system holds 700 for files, and gives them back when asked."""
    group = tmp_path / "sys" / "fs" / "cgroup"
    group.mkdir(parents=True)
    (group / "memory.max").write_text("1000\n")
    (group / "memory.current").write_text("900\n")
    (group / "memory.stat").write_text("anon 150\ninactive_file 700\nactive_file 50\n")
    monkeypatch.setattr("ssole.memory.Path", lambda path: tmp_path / path.lstrip("/"))
    monkeypatch.setattr("ssole.memory.total_memory", lambda: 1000)
    assert available_memory() == 800


def test_what_is_loaded_by_all_processes_of_a_machine_must_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ssole.memory.total_memory", lambda: 10 * 2**30)
    check_memory(3 * 2**30, "The images", "Give fewer.")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    check_memory(3 * 2**30, "The images", "Give fewer.")  # the first process works alone
    monkeypatch.setenv("WORLD_SIZE", "4")
    check_memory(2 * 2**30, "The images", "Give fewer.")
    with pytest.raises(DataError, match=r"The images: 3\.0 GiB in each of 4 processes, .*\(8\.0 GiB\)\. Give fewer\."):
        check_memory(3 * 2**30, "The images", "Give fewer.")


@pytest.mark.parametrize(
    ("line", "folder", "limit"),
    [
        ("0::/slurm/job_7/step", "slurm/job_7", "memory.max"),
        ("9:memory:/slurm/job_7", "memory/slurm/job_7", "memory.limit_in_bytes"),
        ("0::/../elsewhere", "", "memory.max"),  # of a container that sees no group but its own
    ],
)
def test_limits_of_the_groups_of_this_process_hold(
    line: str, folder: str, limit: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    group = tmp_path / "sys" / "fs" / "cgroup" / folder
    group.mkdir(parents=True)
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "self" / "cgroup").write_text(f"4:cpu:/other\n{line}\n")
    (group / limit).write_text("1000000\n")
    (group / "memory.current").write_text("900000\n")
    (group / "memory.stat").write_text("inactive_file 200000\n")
    monkeypatch.setattr("ssole.memory.Path", lambda path: tmp_path / path.lstrip("/"))
    assert total_memory() == 1_000_000
    assert available_memory() == (300_000 if limit == "memory.max" else 1_000_000)
