"""Memory that a process may use: of the machine, of its control groups, and of GPUs."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import torch

from ssole.errors import DataError


def total_memory() -> int:
    """Bytes of memory that this process may use: the machine's, or its container's if that is less."""
    amounts = []
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        amounts.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    if hasattr(ctypes, "windll"):
        amounts.append(_windows_memory()[0])
    limits = [_number(group / name) for group in _memory_groups() for name in ("memory.max", "memory.limit_in_bytes")]
    amounts += [limit for limit in limits if limit is not None]
    return min(amounts, default=8 << 30)  # a common size, where the system does not tell


def available_memory() -> int:
    """Bytes of memory that nobody uses now, in the machine and in this container."""
    amounts, meminfo = [total_memory()], Path("/proc/meminfo")
    if meminfo.exists():  # Linux
        lines = meminfo.read_text().splitlines()
        amounts += [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    if hasattr(ctypes, "windll"):
        amounts.append(_windows_memory()[1])
    for group in _memory_groups():
        limit, used = _number(group / "memory.max"), _number(group / "memory.current")
        if limit is not None and used is not None:
            lines = (group / "memory.stat").read_text().splitlines()
            # of files that were read; the system gives it back when it is needed
            cache = sum(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))
            amounts.append(limit - used + cache)
    return max(0, min(amounts))


class _WindowsStatus(ctypes.Structure):
    """Structure MEMORYSTATUSEX, which Windows fills."""

    _fields_ = (
        ("length", ctypes.c_uint32),
        ("load", ctypes.c_uint32),
        *((name, ctypes.c_uint64) for name in ("total", "available", "a", "b", "c", "d", "e")),
    )


def _windows_memory() -> tuple[int, int]:
    """Bytes of memory of a Windows machine, and those of them that nobody uses now."""
    status = _WindowsStatus(length=ctypes.sizeof(_WindowsStatus), total=8 << 30, available=8 << 30)  # if it fails
    ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status))  # type: ignore[attr-defined, unused-ignore]
    return status.total, status.available


def _memory_groups() -> list[Path]:
    """Folders of the control groups whose limits of memory hold for this process, in either version of groups."""
    groups, own = [Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/memory")], Path("/proc/self/cgroup")
    for line in own.read_text().splitlines() if own.exists() else []:
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "memory"):  # of version 2, or those of memory in version 1
            top = groups[len(controllers) > 0]
            inner = top / path.lstrip("/")
            groups += [group for group in (inner, *inner.parents) if top in group.parents]
    return groups


def _number(path: Path) -> int | None:
    """Number that a file of the system holds; None if there is no such file, or it says that there is no limit."""
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def free_memory(device: torch.device) -> int:
    """Bytes of a device's memory that nobody uses now: of a GPU, else of the machine."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_memory()


def check_memory(size: int, what: str, hint: str) -> None:
    """Raise a `DataError` for more than 80 % of the memory, before the system kills the process that loads it.

    Args:
        size: Bytes to be loaded, by each of the processes that torchrun started on this machine.
        what: What they are; begins the message.
        hint: What to do instead, in whole sentences.
    """
    several = int(os.environ.get("WORLD_SIZE", 1)) > 1  # else one process works for all
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if several else 1
    if size * processes > (limit := int(0.8 * total_memory())):
        each = f" in each of {processes} processes" if processes > 1 else ""
        raise DataError(
            f"{what}: {size / 2**30:.1f} GiB{each}, more than 80 % of the memory ({limit / 2**30:.1f} GiB). {hint}"
        )
