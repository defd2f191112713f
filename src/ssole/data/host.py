"""What the machine offers: memory, and a place to keep files."""

from __future__ import annotations

import os
from pathlib import Path


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
