"""Indices that stand for all."""

from __future__ import annotations


def spread(n: int, count: int) -> list[int]:
    """Up to `count` different indices below n, evenly spaced, from 0 on."""
    count = min(n, count)
    return [k * n // count for k in range(count)]
