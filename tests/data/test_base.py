"""Evenly spaced indices."""

from __future__ import annotations

import pytest

from ssole.data.base import evenly_spaced


@pytest.mark.parametrize(
    ("n", "count", "expected"), [(10, 5, [0, 2, 4, 6, 8]), (3, 2, [0, 1]), (3, 9, [0, 1, 2]), (0, 4, [])]
)
def test_spread(n: int, count: int, expected: list[int]) -> None:
    assert evenly_spaced(n, count) == expected
