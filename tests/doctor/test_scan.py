"""One pass over the images: what is kept of each, and that nothing ends it."""

from __future__ import annotations

import io
import os
import time
from pathlib import Path

import imagehash
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from ssole.data.arrays import ArraySource
from ssole.data.folder import FolderSource
from ssole.doctor.scan import Scan, Seen, Unreadable, _in_threads, chosen, look_at, scan


def look(root: Path) -> Scan:
    source = FolderSource(root)
    return scan(source, range(len(source)), progress=False)


def jpeg(picture: NDArray[np.uint8], **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def seen(image: NDArray[np.uint8]) -> Seen:
    found = look_at(ArraySource(image[None]), 0)
    assert isinstance(found, Seen)
    return found


def test_every_kind_of_broken_file_is_listed_and_ends_nothing(folder: Path, pictures: list[NDArray[np.uint8]]) -> None:
    whole = jpeg(pictures[0])
    broken = {
        "empty.jpg": (b"", "empty (0 bytes)"),
        "truncated.jpg": (whole[: len(whole) // 2], "damaged"),
        "header.jpg": (whole[:20], "image"),
        "page.jpg": (b"<!DOCTYPE html><html>404</html>", "an HTML page"),
        "pointer.png": (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        "noise.png": (bytes(range(256)), "not an image that Pillow can open"),
    }
    for name, (data, _) in broken.items():
        (folder / name).write_bytes(data)
    found = look(folder)
    assert len(found.seen) == len(pictures)
    assert {one.id for one in found.unreadable} == set(broken)
    for one in found.unreadable:
        assert broken[one.id][1] in one.reason
        assert not one.reason.startswith(one.id)
        assert FolderSource(folder).id(one.index) == one.id


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_listed(folder: Path) -> None:
    (folder / "00.png").chmod(0)
    assert "cannot read the file" in look(folder).unreadable[0].reason


def test_modes_and_formats_are_found_from_the_bytes(tmp_path: Path, pictures: list[NDArray[np.uint8]]) -> None:
    image = Image.fromarray(pictures[0])
    deep = np.asarray(image.convert("L")).astype(np.uint16) * 257
    image.convert("L").save(tmp_path / "a.png")
    image.convert("CMYK").save(tmp_path / "b.jpg")
    Image.fromarray(deep).save(tmp_path / "c.png")
    image.convert("P").save(tmp_path / "d.gif")
    image.save(tmp_path / "e.png", "JPEG")
    headers = [(one.header.format, one.header.mode) for one in look(tmp_path).seen]
    assert headers == [("PNG", "L"), ("JPEG", "CMYK"), ("PNG", "I;16"), ("GIF", "P"), ("JPEG", "RGB")]


def test_the_size_is_that_of_the_image_turned_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (60, 20), "red").save(tmp_path / "turned.jpg", exif=exif)
    Image.new("RGB", (60, 20), "red").save(tmp_path / "upright.jpg")
    sizes = [(one.header.width, one.header.height) for one in look(tmp_path).seen]
    assert sizes == [(20, 60), (60, 20)]


def test_the_hash_is_that_of_imagehash(pictures: list[NDArray[np.uint8]]) -> None:
    for picture in pictures:
        small = picture[:60, :60]  # no larger than what is decoded to, so that both see the same pixels
        assert seen(small).hash == int(str(imagehash.phash(Image.fromarray(small))), 16)


def test_the_thumbnail_holds_the_means_of_a_grid() -> None:
    grid = np.random.default_rng(0).integers(0, 256, (16, 16), dtype=np.uint8)
    assert np.array_equal(seen(grid.repeat(3, 0).repeat(3, 1)).thumbnail, grid)


def test_the_digest_tells_arrays_apart_and_recognises_the_same() -> None:
    flat, square = np.arange(16, dtype=np.uint8).reshape(2, 8), np.arange(16, dtype=np.uint8).reshape(4, 4)
    assert seen(flat).digest != seen(square).digest
    assert seen(flat).digest == seen(flat.copy()).digest
    turned = np.asfortranarray(np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8))
    assert seen(turned).digest == seen(np.ascontiguousarray(turned)).digest


@pytest.mark.parametrize(("value", "blank"), [((9, 9, 9), True), ((9, 200, 9), True), (None, False)])
def test_blank_images_are_of_one_colour(value: tuple[int, int, int] | None, blank: bool) -> None:
    image = np.zeros((8, 8, 3), dtype=np.uint8)
    image[:] = value or (1, 2, 3)
    image[0, 0, 0] += value is None
    assert seen(image).blank is blank


def test_results_are_in_order_and_the_same_as_one_by_one(folder: Path) -> None:
    source = FolderSource(folder)
    found = scan(source, [7, 3, 5], progress=False)
    assert [one.index for one in found.seen] == [7, 3, 5]
    assert [one.digest for one in found.seen] == [look_at(source, i).digest for i in (7, 3, 5)]  # type: ignore[union-attr]


@pytest.mark.parametrize(("images", "limit"), [(10, 100), (10, 10), (1000, 7), (3, 2)])
def test_a_sample_is_spread_evenly(images: int, limit: int) -> None:
    indices = chosen(images, limit)
    assert len(indices) == min(images, limit)
    gaps = np.diff([*indices, images])
    assert indices[0] == 0
    assert gaps.max() - gaps.min() <= 1


class Slow(ArraySource):
    """Counts what is read of it."""

    reads = 0

    def read(self, i: int) -> NDArray[np.uint8]:
        self.reads += 1
        time.sleep(0.01)
        return super().read(i)


def test_whoever_leaves_early_leaves_no_work_behind() -> None:
    """What Ctrl-C does: threads end within the image that they are at."""
    source = Slow(np.zeros((5000, 4, 4), dtype=np.uint8))
    parts = _in_threads(source, list(range(5000)))
    next(parts)
    parts.close()
    time.sleep(0.1)
    reads = source.reads
    time.sleep(0.2)
    assert source.reads == reads < 1000


def test_an_error_that_is_not_the_images_is_not_hidden() -> None:
    class Wrong(ArraySource):
        def read(self, i: int) -> NDArray[np.uint8]:
            raise KeyError("a mistake in the source")

    with pytest.raises(KeyError, match="a mistake"):
        scan(Wrong(np.zeros((3, 4, 4), dtype=np.uint8)), range(3), progress=False)


def test_unreadable_images_have_the_index_of_the_source() -> None:
    class Some(ArraySource):
        def read(self, i: int) -> NDArray[np.uint8]:
            return super().read(i) if i % 2 else np.zeros((4, 4, 2), dtype=np.uint8)

    found = scan(Some(np.zeros((6, 4, 4), dtype=np.uint8), name="odd"), range(6), progress=False)
    assert [one.index for one in found.seen] == [1, 3, 5]
    assert all(isinstance(one, Unreadable) and one.id == f"odd:{one.index}" for one in found.unreadable)
    assert [one.index for one in found.unreadable] == [0, 2, 4]
