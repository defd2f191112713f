"""Records of all images, which no broken file stops, and a sample decoded as training does."""

from __future__ import annotations

import io
import os
import threading
import time
from pathlib import Path

import imagehash
import numpy as np
import pytest
import tifffile
import torch
from numpy.typing import NDArray
from PIL import Image

from ssole.config import Crop, ViewRecipe
from ssole.data.arrays import ArraySource
from ssole.data.base import evenly_spaced
from ssole.data.folder import FolderSource
from ssole.doctor.scan import (
    KEPT,
    SAMPLE_IMAGES,
    Readable,
    Sample,
    Scan,
    Unreadable,
    draw_sample,
    scan,
    scan_image,
    view_rate,
)
from ssole.errors import DataError

CPU = torch.device("cpu")


def scan_folder(root: Path) -> Scan:
    source = FolderSource(root)
    return scan(source, range(len(source)), progress=False)


def jpeg(picture: NDArray[np.uint8], **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def record(image: NDArray[np.uint8]) -> Readable:
    found = scan_image(ArraySource(image[None]), 0)
    assert isinstance(found, Readable)
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
    found = scan_folder(folder)
    assert len(found.readable) == len(pictures)
    assert {one.id for one in found.unreadable} == set(broken)
    for one in found.unreadable:
        assert broken[one.id][1] in one.reason
        assert not one.reason.startswith(one.id)
        assert FolderSource(folder).id(one.index) == one.id


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_listed(folder: Path) -> None:
    (folder / "00.png").chmod(0)
    assert "cannot read the file" in scan_folder(folder).unreadable[0].reason


def test_modes_and_formats_are_found_from_the_bytes(tmp_path: Path, pictures: list[NDArray[np.uint8]]) -> None:
    image = Image.fromarray(pictures[0])
    deep = np.asarray(image.convert("L")).astype(np.uint16) * 257
    image.convert("L").save(tmp_path / "a.png")
    image.convert("CMYK").save(tmp_path / "b.jpg")
    Image.fromarray(deep).save(tmp_path / "c.png")
    image.convert("P").save(tmp_path / "d.gif")
    image.save(tmp_path / "e.png", "JPEG")
    headers = [(one.header.format, one.header.mode) for one in scan_folder(tmp_path).readable]
    assert headers == [("PNG", "L"), ("JPEG", "CMYK"), ("PNG", "I;16"), ("GIF", "P"), ("JPEG", "RGB")]


def test_tiffs_that_pillow_does_not_know(tmp_path: Path) -> None:
    five, rgb = np.zeros((6, 9, 5), np.uint16), np.zeros((6, 9, 3), np.uint8)
    tifffile.imwrite(tmp_path / "five.tif", five, photometric="minisblack", planarconfig="contig")
    tifffile.imwrite(tmp_path / "big.tif", rgb, photometric="rgb", bigtiff=True, byteorder=">")
    for i, (channels, mode) in enumerate([(None, "3 x uint8"), (5, "5 x uint16")]):
        found = scan_image(FolderSource(tmp_path), i, channels)
        assert isinstance(found, Readable)
        assert found.header[:4] == ("TIFF", mode, 9, 6)


def test_the_size_is_that_of_the_image_turned_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (60, 20), "red").save(tmp_path / "turned.jpg", exif=exif)
    Image.new("RGB", (60, 20), "red").save(tmp_path / "upright.jpg")
    sizes = [(one.header.width, one.header.height) for one in scan_folder(tmp_path).readable]
    assert sizes == [(20, 60), (60, 20)]


def test_the_hash_is_that_of_imagehash(pictures: list[NDArray[np.uint8]]) -> None:
    for picture in pictures:
        small = picture[:60, :60]  # no larger than what is decoded to, so that both see the same pixels
        assert record(small).hash == int(str(imagehash.phash(Image.fromarray(small))), 16)


def test_the_thumbnail_holds_the_means_of_a_grid() -> None:
    grid = np.random.default_rng(0).integers(0, 256, (16, 16), dtype=np.uint8)
    assert np.array_equal(record(grid.repeat(3, 0).repeat(3, 1)).thumbnail, grid)


def test_the_digest_tells_arrays_apart_and_recognises_the_same() -> None:
    flat, square = np.arange(16, dtype=np.uint8).reshape(2, 8), np.arange(16, dtype=np.uint8).reshape(4, 4)
    assert record(flat).digest != record(square).digest
    assert record(flat).digest == record(flat.copy()).digest
    turned = np.asfortranarray(np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8))
    assert record(turned).digest == record(np.ascontiguousarray(turned)).digest


@pytest.mark.parametrize(("value", "blank"), [((9, 9, 9), True), ((9, 200, 9), True), (None, False)])
def test_blank_images_are_of_one_colour(value: tuple[int, int, int] | None, blank: bool) -> None:
    image = np.zeros((8, 8, 3), dtype=np.uint8)
    image[:] = value or (1, 2, 3)
    image[0, 0, 0] += value is None
    assert record(image).blank is blank


def test_results_are_in_order_and_the_same_as_one_by_one(folder: Path) -> None:
    source = FolderSource(folder)
    found = scan(source, [7, 3, 5], progress=False)
    assert [one.index for one in found.readable] == [7, 3, 5]
    assert [one.digest for one in found.readable] == [scan_image(source, i).digest for i in (7, 3, 5)]  # type: ignore[union-attr]


@pytest.mark.parametrize(("images", "limit"), [(10, 100), (10, 10), (1000, 7), (3, 2)])
def test_indices_are_evenly_spaced(images: int, limit: int) -> None:
    indices = evenly_spaced(images, limit)
    assert len(indices) == min(images, limit)
    gaps = np.diff([*indices, images])
    assert indices[0] == 0
    assert gaps.max() - gaps.min() <= 1


class Slow(ArraySource):
    """Source that counts its reads, which take 10 ms; the first one is interrupted, as by Ctrl-C."""

    reads = 0

    def read(self, i: int) -> NDArray[np.uint8]:
        self.reads += 1
        time.sleep(0.01)
        if i == 0:
            raise KeyboardInterrupt
        return super().read(i)


def test_leaving_early_leaves_no_work_behind() -> None:
    """As on Ctrl-C: every thread ends after the image it is reading."""
    source = Slow(np.zeros((5000, 4, 4), dtype=np.uint8))
    with pytest.raises(KeyboardInterrupt):
        scan(source, range(5000), progress=False)
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
    assert [one.index for one in found.readable] == [1, 3, 5]
    assert all(isinstance(one, Unreadable) and one.id == f"odd:{one.index}" for one in found.unreadable)
    assert [one.index for one in found.unreadable] == [0, 2, 4]


# The sample


def sample_of(source: ArraySource | FolderSource, shrink_to: int = 1000) -> Sample:
    return draw_sample(source, scan(source, range(len(source)), progress=False).readable, shrink_to=shrink_to)


def test_channel_statistics_are_those_of_numpy() -> None:
    images = np.random.default_rng(0).integers(0, 200, (40, 9, 7, 3), dtype=np.uint8)
    images[..., 2] //= 4
    found = sample_of(ArraySource(images)).statistics
    assert found.images == 40
    assert found.mean == pytest.approx((images / 255).mean(axis=(0, 1, 2)), abs=1e-12)
    assert found.std == pytest.approx((images / 255).std(axis=(0, 1, 2)), abs=1e-12)


def test_each_image_has_the_same_weight_whatever_its_size(tmp_path: Path) -> None:
    Image.new("RGB", (90, 90), (255, 0, 0)).save(tmp_path / "large.png")
    Image.new("RGB", (10, 10), (0, 0, 0)).save(tmp_path / "small.png")
    found = sample_of(FolderSource(tmp_path)).statistics
    assert found.mean == [0.5, 0, 0]
    assert found.std == pytest.approx([0.5, 0, 0])


def test_the_sample_is_evenly_spaced_and_bounded() -> None:
    images = np.arange(1000, dtype=np.int64).repeat(16).reshape(1000, 4, 4)
    sample = sample_of(ArraySource((images // 4).astype(np.uint8)))
    assert sample.statistics.images == sample.decode.images == SAMPLE_IMAGES
    assert len(sample.images) == len(sample.ids) == KEPT
    for image, index in zip(sample.images, sample.ids.tolist(), strict=True):
        assert (image == index // 4).all()
    assert sample.statistics.mean[0] == pytest.approx(images.mean() / 4 / 255, rel=0.02)
    assert sample.decode.value > 0
    assert sorted(sample.ids.tolist())[-1] > 900  # even of those kept


class Failing(ArraySource):
    """Source of grey images, some of which fail once `fails` is set, as over a network."""

    fails: frozenset[int] = frozenset()

    def read(self, i: int) -> NDArray[np.uint8]:
        if i in self.fails:
            raise DataError(f"{self.id(i)}: the server is gone")
        return super().read(i)


def test_images_that_fail_when_read_again_are_left_out() -> None:
    source = Failing(np.arange(200, dtype=np.uint8)[:, None, None].repeat(4, 1).repeat(4, 2), name="far")
    readable = scan(source, range(200), progress=False).readable
    source.fails = frozenset(range(0, 200, 2))
    sample = draw_sample(source, readable, shrink_to=8)
    assert sample.statistics.images == sample.decode.images == 100
    assert sample.statistics.mean[0] == pytest.approx(100 / 255)
    assert len(sample.images) == KEPT
    assert [int(image[0, 0, 0]) for image in sample.images] == sample.ids.tolist()
    source.fails = frozenset(range(200))
    with pytest.raises(DataError, match=r"far: no image can be read a second time \(far:\d+: the server is gone\)"):
        draw_sample(source, readable, shrink_to=8)


def test_ctrl_c_does_not_wait_for_a_silent_disk() -> None:
    class Silent(ArraySource):
        silent = False
        answer = threading.Event()

        def read(self, i: int) -> NDArray[np.uint8]:
            if self.silent and i == 0:
                raise KeyboardInterrupt
            if self.silent:
                self.answer.wait(10)
            return super().read(i)

    source = Silent(np.zeros((8, 4, 4), dtype=np.uint8))
    readable = scan(source, range(8), progress=False).readable
    source.silent, begin = True, time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        draw_sample(source, readable, shrink_to=8)
    assert time.monotonic() - begin < 5
    source.answer.set()


def test_a_batch_repeats_what_there_is() -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 5, 5, 3), dtype=np.uint8)
    sample = sample_of(ArraySource(images))
    batch, ids = sample.batch(7, CPU)
    assert isinstance(batch, torch.Tensor)
    assert batch.shape == (7, 3, 5, 5)
    assert torch.equal(batch[6], batch[0])
    assert ids.tolist() == list(range(7))


def test_a_batch_of_both_depths_has_sixteen_bits() -> None:
    sample = sample_of(ArraySource(np.full((2, 5, 5, 3), 200, np.uint8)))
    sample.images[1] = torch.full((3, 5, 5), 7, dtype=torch.uint16)
    batch, _ = sample.batch(2, CPU)
    assert isinstance(batch, torch.Tensor)
    assert batch[:, 0, 0, 0].tolist() == [200 * 257, 7]


def test_a_batch_of_different_sizes_is_a_list(folder: Path, pictures: list[NDArray[np.uint8]]) -> None:
    Image.fromarray(pictures[0][:70]).save(folder / "half.png")
    batch, _ = sample_of(FolderSource(folder)).batch(14, CPU)
    assert isinstance(batch, list)
    assert len(batch) == 14


def test_large_images_are_reduced_as_training_does(folder: Path) -> None:
    assert {min(image.shape[1:]) for image in sample_of(FolderSource(folder), shrink_to=50).images} == {50}


def test_views_are_counted_with_all_of_an_images_views(monkeypatch: pytest.MonkeyPatch) -> None:
    sample = sample_of(ArraySource(np.zeros((4, 12, 12, 3), dtype=np.uint8)))
    clock = iter(range(100))  # a second between any two looks at it
    monkeypatch.setattr("ssole.doctor.scan.time.perf_counter", lambda: float(next(clock)))
    recipe = ViewRecipe(crops=(Crop(count=2, size=8), Crop(count=3, size=4)))
    # begun at 0, asked at 1: the time is up at once, so that no view is made
    assert view_rate(sample, recipe, CPU).value == 0
    monkeypatch.setattr(
        "ssole.doctor.scan.SAMPLE_SECONDS", 10.0
    )  # 2.5 s: looks at 1 and 2 find time, the one at 3 does not
    clock = iter(range(100))
    assert view_rate(sample, recipe, CPU).value == 2 * 4 * 5 / 4
