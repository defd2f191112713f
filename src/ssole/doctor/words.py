"""Amounts and shares, as one would say them."""

from __future__ import annotations


def amount(size: float) -> str:
    """Bytes, in the largest unit that fits."""
    for unit, one in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= one:
            return f"{size / one:.1f} {unit}"
    return f"{size:.0f} B"


def share(count: int, total: int) -> str:
    """``12 of 1,000 images (1.2 %)``."""
    percent = 100 * count / total
    text = "under 0.1" if percent < 0.1 else f"{percent:.1f}" if percent < 10 else f"{percent:.0f}"
    return f"{count:,} of {total:,} images ({text} %)"
