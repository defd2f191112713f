"""The packed file: what is kept comes back, to the bit and without a copy, whatever a kill or a full disk left."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from ssole.data import packed as module
from ssole.data.packed import PackedImages

Open = Callable[..., PackedImages]


def image(i: int, dtype: torch.dtype = torch.uint8) -> torch.Tensor:
    random = np.random.default_rng(i)
    high = 256 if dtype == torch.uint8 else 65536
    return torch.from_numpy(random.integers(0, high, (1 + i % 4, 5 + i % 3, 7))).to(dtype)


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Open]:
    """Opens the cache in `tmp_path`, and closes it in the end."""
    with contextlib.ExitStack() as stack:

        def open_packed(images: int = 10, *, limit: int = 1 << 30) -> PackedImages:
            packed = PackedImages(tmp_path, images, limit=limit)
            stack.callback(packed.close)
            return packed

        yield open_packed


@pytest.fixture
def full(opened: Open) -> PackedImages:
    """Ten images kept."""
    packed = opened()
    for i in range(10):
        packed.keep(i, image(i))
    return packed


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16])
def test_what_is_kept_comes_back(opened: Open, dtype: torch.dtype) -> None:
    packed = opened(20)
    for i in range(0, 20, 2):
        assert packed.get(i) is None
        packed.keep(i, image(i, dtype))
    for cache in (packed, opened(20)):
        assert len(cache) == 10
        for i in range(20):
            found = cache.get(i)
            assert (found is None) == bool(i % 2)
            if found is not None:
                assert found.dtype == dtype
                assert torch.equal(found, image(i, dtype))


def test_a_transposed_image_is_kept_as_it_looks(opened: Open) -> None:
    packed = opened(1)
    packed.keep(0, image(3).permute(2, 0, 1))
    assert torch.equal(packed.get(0), image(3).permute(2, 0, 1))


def test_images_are_not_copied_and_writing_to_one_leaves_the_file_alone(full: PackedImages, opened: Open) -> None:
    packed = full
    first, again = packed.get(3), packed.get(3)
    assert first.data_ptr() == again.data_ptr()
    first.zero_()
    assert torch.equal(opened().get(3), image(3))


def test_a_system_that_promises_no_memory_gets_copies(
    full: PackedImages, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    full.close()
    mapped = np.memmap

    def refuse(file: object, mode: str) -> np.ndarray:
        if mode == "c":
            raise OSError(12, "Cannot allocate memory")
        return mapped(file, mode=mode)

    monkeypatch.setattr(module.np, "memmap", refuse)
    packed = opened()
    first, again = packed.get(3), packed.get(3)
    assert first.data_ptr() != again.data_ptr()
    assert torch.equal(first, image(3))


def test_two_caches_of_one_folder_see_what_the_other_keeps_and_keep_nothing_twice(opened: Open, tmp_path: Path) -> None:
    one, other = (opened(4) for _ in range(2))
    one.keep(0, image(0))
    assert torch.equal(other.get(0), image(0))
    other.keep(1, image(1))
    one.keep(1, image(1))
    assert torch.equal(one.get(1), image(1))
    assert (tmp_path / "index.bin").stat().st_size == 2 * module._RECORD.itemsize


def test_many_threads(opened: Open, tmp_path: Path) -> None:
    packed = opened(200)
    wrong: list[int] = []

    def work(seed: int) -> None:
        for i in np.random.default_rng(seed).permutation(200).tolist():
            if packed.get(i) is None:
                packed.keep(i, image(i))
            if not torch.equal(packed.get(i), image(i)):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(packed) == 200
    assert (tmp_path / "index.bin").stat().st_size == 200 * module._RECORD.itemsize


@pytest.mark.parametrize("cut", [1, module._RECORD.itemsize - 1, module._RECORD.itemsize, 2 * module._RECORD.itemsize])
def test_an_index_that_was_cut_short(full: PackedImages, opened: Open, tmp_path: Path, cut: int) -> None:
    full.close()
    index = tmp_path / "index.bin"
    os.truncate(index, index.stat().st_size - cut)
    packed = opened()
    lost = -(-cut // module._RECORD.itemsize)
    assert len(packed) == 10 - lost
    for i in range(10 - lost, 10):
        assert packed.get(i) is None
        packed.keep(i, image(i))
    assert all(torch.equal(opened().get(i), image(i)) for i in range(10))


@pytest.mark.parametrize("filler", [b"\0", b"\1", b"\xff", b"\x7f"])
def test_an_index_that_ends_in_rubbish(full: PackedImages, opened: Open, tmp_path: Path, filler: bytes) -> None:
    full.close()
    with open(tmp_path / "index.bin", "ab") as index:
        index.write(filler * 5 * module._RECORD.itemsize)
    packed = opened()
    assert all(torch.equal(packed.get(i), image(i)) for i in range(10))


def test_pixels_that_are_not_those_written_are_decoded_again(full: PackedImages, opened: Open, tmp_path: Path) -> None:
    full.close()
    with open(tmp_path / "pixels.bin", "r+b") as pixels:
        pixels.seek(5)
        pixels.write(b"\0\0\0\0")
    os.truncate(tmp_path / "pixels.bin", (tmp_path / "pixels.bin").stat().st_size - 1)
    packed = opened()
    assert packed.get(0) is None  # changed
    assert packed.get(9) is None  # cut
    for i in (0, 9):
        packed.keep(i, image(i))
    again = opened()
    assert all(torch.equal(again.get(i), image(i)) for i in range(10))


def test_the_limit_holds_and_is_told_once(opened: Open, tmp_path: Path) -> None:
    packed = opened(limit=300)
    packed.keep(0, image(0))
    packed.keep(1, image(1))  # 35 and 84 bytes; the third takes 147, from 192 on
    with pytest.warns(UserWarning, match="reached its limit"):
        packed.keep(2, image(2))
    for i in range(3, 10):
        packed.keep(i, image(i))  # and warns no more: here a warning is an error
    assert packed.full
    assert (tmp_path / "pixels.bin").stat().st_size <= 300
    assert 1 <= len(packed) < 10
    assert all(packed.get(i) is None or torch.equal(packed.get(i), image(i)) for i in range(10))


def test_a_disk_that_refuses_is_told_once_and_what_is_kept_stays(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = opened()
    packed.keep(0, image(0))

    def refuse(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "_write", refuse)
    with pytest.warns(UserWarning, match="No space left on device"):
        packed.keep(1, image(1))
    packed.keep(2, image(2))  # and warns no more
    assert torch.equal(packed.get(0), image(0))
    assert packed.get(1) is None


def test_after_close_nothing_is_found_or_kept_and_what_was_handed_out_stays(full: PackedImages) -> None:
    packed = full
    found = packed.get(3)
    packed.close()
    packed.close()
    assert packed.get(3) is None
    packed.keep(3, image(3))
    assert torch.equal(found, image(3))
