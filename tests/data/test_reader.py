"""The reader of a store's threads: the cache, unreadable images and their stand-ins, and chunks of rows."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from listed import Listed, png
from ssole.data.cache import ImageCache
from ssole.data.reader import Reader
from ssole.errors import DataError

ARRAYS: NDArray[np.uint8] = np.random.default_rng(0).integers(0, 256, (6, 5, 4, 3), dtype=np.uint8)
AS_RGB: dict[str, int | None] = {"shrink_to": None, "channels": None}


def reader(items: Any, *, allowed: int = 9, **decoding: int | None) -> Reader:
    return Reader(Listed(list(items)), AS_RGB | decoding, allowed=allowed)


def broken(*bad: int) -> list[Any]:
    return [b"broken" if i in bad else image for i, image in enumerate(ARRAYS)]


def expected(i: int) -> torch.Tensor:
    return torch.from_numpy(ARRAYS[i].transpose(2, 0, 1).copy())


def test_an_image_is_decoded_as_the_options_say() -> None:
    image = reader(ARRAYS).read(2)
    assert image is not None
    assert torch.equal(image, expected(2))
    small = reader([png(40, 60, 0)], shrink_to=20).read(0)
    assert small is not None
    assert small.shape == (3, 20, 30)
    grey = reader([ARRAYS[0, ..., :1]], channels=1).read(0)
    assert grey is not None
    assert torch.equal(grey, expected(0)[:1])


def test_an_unreadable_image_is_looked_at_once_and_named() -> None:
    found = reader(broken(4, 1))
    for i in (4, 1, 4, 1):
        assert found.read(i) is None
    assert isinstance(found.source, Listed)
    assert found.source.reads == [4, 1]
    (first, one, why), (second, _, _) = found.unreadable()
    assert (first, second, one) == (1, 4, "item 1")  # in the order of indices, not of reading
    assert "not an image" in why
    assert "item" not in why  # which stands beside it already


def test_its_stand_in_is_the_next_by_index_around_the_end() -> None:
    found = reader(broken(3, 4, 5))
    for i, stand_in in ((0, 0), (3, 0), (5, 0), (2, 2)):
        assert torch.equal(found.read_or_next(i), expected(stand_in))


def test_too_many_are_an_error_that_names_the_first() -> None:
    found = reader(broken(0, 2, 5), allowed=2)
    assert found.read(5) is None
    assert found.read(2) is None
    said = (
        r"^3 of the 6 images in listed cannot be read, and at most 2 may be\. Repair or remove them "
        r"\(ssole doctor DATA lists all\)\. Only training can be told to allow a larger share "
        r"\(--max-unreadable, in Python max_unreadable\)\. The first of them:"
    )
    with pytest.raises(DataError, match=rf"{said}\n  item 0: .*\n  item 2: .*\n  item 5: [^\n]*$") as raised:
        found.read(0)
    assert isinstance(raised.value.__cause__, DataError)


def test_of_many_the_first_five_are_named() -> None:
    found = reader([b"broken"] * 9, allowed=8)
    with pytest.raises(DataError, match=r"^9 of the 9 .*at most 8 may") as raised:
        found.read_or_next(7)
    assert str(raised.value).count("\n") == 5


def test_without_a_single_readable_image_there_is_no_stand_in() -> None:
    """However many are allowed: one has to be readable, and the error says so."""
    with pytest.raises(DataError, match=r"^3 of the 3 images in listed cannot be read, and at most 2 may be"):
        reader([b"broken"] * 3, allowed=99).read_or_next(1)


def test_what_is_in_the_cache_is_not_read_and_what_is_unreadable_is_not_in_it(tmp_path: Path) -> None:
    items = [png(5, 6, 0), b"broken", png(7, 6, 2)]
    first, later = reader(items), reader(items)
    first.cache = later.cache = ImageCache(tmp_path, len(items), limit=1 << 20)
    kept = [first.read(i) for i in range(3)]
    assert len(first.cache) == 2
    again = [later.read(i) for i in range(3)]
    assert isinstance(later.source, Listed)
    assert later.source.reads == [1]
    for one, other in ((kept[0], again[0]), (kept[2], again[2])):
        assert one is not None
        assert other is not None
        assert torch.equal(one, other)
    first.cache.close()


def test_an_error_that_is_not_the_images_is_not_taken_for_one() -> None:
    class Down(Listed):
        def read(self, i: int) -> bytes:
            raise OSError("the disk is gone")

    found = Reader(Down(list(ARRAYS)), AS_RGB, allowed=9)
    with pytest.raises(OSError, match="the disk is gone"):
        found.read(0)
    assert found.unreadable() == []


def test_a_chunk_fills_its_rows_alone() -> None:
    images = torch.full((6, 3, 5, 4), 7, dtype=torch.uint8)
    assert reader(broken(3)).fill(images, range(2, 5), threading.Event())
    for i in range(6):
        assert torch.equal(images[i], expected(i) if i in (2, 4) else torch.full((3, 5, 4), 7, dtype=torch.uint8))


@pytest.mark.parametrize("odd", [np.zeros((5, 3, 3), np.uint8), np.zeros((5, 4, 3), np.uint16)])
def test_a_chunk_with_another_shape_or_dtype_is_given_up(odd: NDArray[Any]) -> None:
    found = reader([*ARRAYS[:2], odd, *ARRAYS[3:]], channels=3)
    images = torch.zeros((6, 3, 5, 4), dtype=torch.uint8)
    assert not found.fill(images, range(6), threading.Event())
    assert isinstance(found.source, Listed)
    assert found.source.reads == [0, 1, 2]


def test_a_chunk_ends_when_it_is_stopped() -> None:
    found, stop = reader(ARRAYS), threading.Event()
    stop.set()
    assert not found.fill(torch.zeros((6, 3, 5, 4), dtype=torch.uint8), range(6), stop)
    assert isinstance(found.source, Listed)
    assert found.source.reads == []
