"""Evenly spaced indices, locations and fingerprints, and parts of a source."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
from image_files import tree

import tiny
from ssole.data.arrays import ArraySource
from ssole.data.base import Source, SubsetSource, evenly_spaced
from ssole.data.folder import FolderSource, ListSource
from ssole.data.sources import open_source
from ssole.errors import DataError


@pytest.mark.parametrize(
    ("n", "count", "expected"), [(10, 5, [0, 2, 4, 6, 8]), (3, 2, [0, 1]), (3, 9, [0, 1, 2]), (0, 4, [])]
)
def test_evenly_spaced_indices(n: int, count: int, expected: list[int]) -> None:
    assert evenly_spaced(n, count) == expected


def test_locations_stay_and_fingerprints_change(tmp_path):
    """The location names a folder or a list; the fingerprint changes with files, ids and their order."""
    root = tree(tmp_path / "photos", "a/1.png", "a/2.png")
    source = FolderSource(root / ".." / "photos")
    assert source.identity == str(root.resolve())
    first = source.fingerprint()
    assert first == FolderSource(root).fingerprint()
    tree(root, "a/3.png")
    assert FolderSource(root).identity == source.identity
    assert FolderSource(root).fingerprint() not in (None, first)
    orders = []
    for name, text in (("1.txt", "a/1.png\na/2.png"), ("2.txt", "a/2.png\na/1.png"), ("3.txt", "a/1.png")):
        (root / name).write_text(text)
        orders.append(ListSource(root / name))
    assert [listed.identity for listed in orders] == [f"{root}/{i}.txt" for i in (1, 2, 3)]
    assert len({listed.fingerprint() for listed in orders}) == 3


def test_by_default_a_source_is_known_by_its_ids(tmp_path):
    ids = ["0.png", os.fsdecode(b"caf\xe9.png")]
    digest = hashlib.sha256("\0".join(ids).encode("utf-8", "surrogatepass")).hexdigest()
    source = Known(ids)
    assert source.identity == source.ids_fingerprint == digest
    assert source.fingerprint() is None
    (tmp_path / "x.bin").write_bytes(b"1")
    known = Known(ids, files=[str(tmp_path / "x.bin")])
    before = known.fingerprint()
    assert before not in (None, Known(ids[::-1], files=known.files()).fingerprint())
    os.utime(tmp_path / "x.bin", ns=(0, 0))
    assert known.fingerprint() not in (None, before)
    (tmp_path / "x.bin").unlink()
    assert known.fingerprint() is not None
    known.identity = "here"
    assert known.identity == "here"


class Known(Source):
    """A source with these ids, of these files."""

    name = "known"

    def __init__(self, ids, *, files=None):
        self.ids, self.paths = ids, files

    def __len__(self):
        return len(self.ids)

    def id(self, i):
        return self.ids[i]

    def read(self, i):
        return b""

    def files(self):
        return self.paths


# A part of a source


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
    assert SubsetSource(whole, [4, 1]).ids_fingerprint == part.ids_fingerprint
    for wrong in (np.arange(6) > 3, [0.0], [6], []):  # a mask is no positions
        with pytest.raises(DataError, match="A part of six needs positions from 0 to 5"):
            SubsetSource(whole, wrong)


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
