"""What the machine offers: memory, processors, and a place to keep files."""

from __future__ import annotations

import math
import os
from pathlib import Path

from ssole.errors import DataError


def cache_folder() -> Path:
    """Where downloads and built data are kept: ``$SSOLE_CACHE``, else ``ssole`` in the platform's cache folder."""
    if given := os.environ.get("SSOLE_CACHE"):
        return Path(given).expanduser()
    if os.name == "nt" and (local := os.environ.get("LOCALAPPDATA")):
        return Path(local) / "ssole"
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "ssole"


def total_memory() -> int:
    """Bytes of memory that this process may use: the machine's, or its container's if that is less."""
    amounts = []
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        amounts.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            text = Path(name).read_text().strip()
        except OSError:
            continue  # no such control group here
        if text.isdigit():
            amounts.append(int(text))
    return min(amounts, default=8 << 30)  # where the system does not say, as on Windows: a common size


def check_memory(size: int, what: str, advice: str) -> None:
    """Better a `DataError` now than a process that the system kills while it loads: for over 80 % of the memory.

    Args:
        size: Bytes that are to be loaded.
        what: What they are, to begin the message with.
        advice: What to do instead, in whole sentences.
    """
    if size > (limit := int(0.8 * total_memory())):
        raise DataError(
            f"{what}: {size / 2**30:.1f} GiB, more than 80 % of the memory ({limit / 2**30:.1f} GiB). {advice}"
        )


def usable_cpus() -> int:
    """Processors that this process may use: those it is bound to, or its container's share if that is less."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(bound, _cpu_quota(Path("/sys/fs/cgroup")))))


def decoding_threads() -> int:
    """How many threads decode images unless told otherwise: one for each processor, up to 16."""
    return min(16, usable_cpus())


def _cpu_quota(groups: Path) -> float:
    """Processors' worth of time that the control group grants, in its second or first version; infinity without one."""
    for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        try:
            quota, period = " ".join((groups / name).read_text() for name in names).split()
        except (OSError, ValueError):
            continue  # no such control group here
        if quota.isdigit() and int(period):  # "max" and -1 stand for no limit
            return int(quota) / int(period)
    return math.inf
