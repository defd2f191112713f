"""SubsetSource: images, ids, labels, fingerprints, refused positions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import tiny
from ssole.data.arrays import ArraySource
from ssole.data.sources import open_source
from ssole.data.subset import SubsetSource
from ssole.errors import DataError


def test_a_part_has_the_images_ids_and_labels_of_the_whole() -> None:
    whole = ArraySource(tiny.images(6), np.arange(6), classes=list("abcdef"), name="six")
    part = SubsetSource(whole, np.array([4, 1]))
    assert len(part) == 2
    assert [part.id(i) for i in range(2)] == ["six:4", "six:1"]
    assert part.labels is not None
    assert part.labels.tolist() == [4, 1]
    assert part.classes == whole.classes
    assert np.array_equal(part.read(0), whole.read(4))
    assert part.fingerprint() is None  # an array cannot tell a change


def test_parts_of_a_folder_can_be_cached_apart(tmp_path: Path) -> None:
    whole = open_source(tiny.write_folder(tmp_path / "photos"))
    parts = [SubsetSource(whole, np.arange(start, start + 5)) for start in (0, 5)]
    assert parts[0].fingerprint() is not None
    assert len({source.fingerprint() for source in (whole, *parts)}) == 3
    assert len({source.identity for source in (whole, *parts)}) == 3


@pytest.mark.parametrize("positions", [[], [-1], [22]])
def test_positions_outside_the_whole_are_refused(positions: list[int]) -> None:
    with pytest.raises(DataError, match="A part of array needs positions from 0 to 21"):
        SubsetSource(ArraySource(tiny.images()), np.array(positions, dtype=np.int64))
