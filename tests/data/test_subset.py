"""SubsetSource: images, ids, labels, fingerprints, refused positions."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

import tiny
from ssole.data.arrays import ArraySource
from ssole.data.folder import FolderSource
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


def test_an_image_outside_of_a_part_may_change(tmp_path: Path) -> None:
    photos = tiny.write_folder(tmp_path / "photos")
    whole = FolderSource(photos)
    part = SubsetSource(whole, np.array([0, 3, 7]))
    nested = SubsetSource(part, np.array([1]))
    assert part.files() == [str(photos / whole.id(i)) for i in (0, 3, 7)]
    assert nested.files() == [str(photos / whole.id(3))]
    assert (nested.id(0), nested.read(0)) == (whole.id(3), whole.read(3))
    before = [source.fingerprint() for source in (part, nested, whole)]
    os.utime(photos / whole.id(1), (0, 0))
    assert [source.fingerprint() for source in (part, nested)] == before[:2]
    os.utime(photos / whole.id(7), (0, 0))
    assert [source.fingerprint() for source in (part, nested)] != before[:2]
    assert nested.fingerprint() == before[1]


def test_a_part_of_a_source_with_a_fingerprint_of_its_own_has_one_too() -> None:
    class Versioned(ArraySource):
        version = "1"

        def fingerprint(self) -> str:
            return self.version

    whole = Versioned(tiny.images(6))
    part, other = (SubsetSource(whole, np.array(positions)) for positions in ([4, 1], [4, 2]))
    nested = SubsetSource(part, np.array([0]))
    before = [source.fingerprint() for source in (part, other, nested)]
    assert None not in before
    assert len({*before}) == 3
    whole.version = "2"
    assert not {*before} & {source.fingerprint() for source in (part, other, nested)}


@pytest.mark.parametrize("positions", [[], [-1], [22]])
def test_positions_outside_the_whole_are_refused(positions: list[int]) -> None:
    with pytest.raises(DataError, match="A part of array needs positions from 0 to 21"):
        SubsetSource(ArraySource(tiny.images()), np.array(positions, dtype=np.int64))
