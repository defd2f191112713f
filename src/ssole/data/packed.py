"""Decoded images in one memory-mapped file: kept while the first epoch trains, read by every later epoch and run.

A cache is a folder of

    pixels.bin   the pixels of one image after another, in the order in which they were first asked for
    index.bin    a record of 36 bytes for each: where its pixels are, their shape, kind and checksum
    about.json   what it holds
    .lock        held by a process while it appends

Any number of processes share one. Each appends what it had to decode, and finds what the others appended. Each has a
shared lock on pixels.bin for as long as it is open, so that nobody removes a cache that is in use. A record is written
after its pixels, and these are compared with its checksum when a process first reads them: whatever a kill, a full disk
or a power failure leaves behind, an image is right or decoded again.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import warnings
import zlib
from pathlib import Path
from typing import IO

import numpy as np
import torch
from numpy.typing import NDArray

_RECORD = np.dtype(
    [
        ("image", "<i8"),
        ("offset", "<i8"),  # of the first byte in pixels.bin
        ("shape", "<i4", 3),  # channels, height, width
        ("kind", "<i4"),  # a key of _DTYPES
        ("checksum", "<u4"),  # CRC-32 of the bytes
    ]
)
_DTYPES = {1: torch.uint8, 2: torch.uint16}
_BYTES = np.array([0, 1, 2])  # that a value takes, by kind
_ALIGN = 64  # bytes; images begin at multiples, so that 16-bit values are aligned, and vector loads fast
_PAGE = 4096
_PATIENCE = 10.0  # seconds to wait for another process to append one image: it takes milliseconds


class PackedImages:
    """The cache in one folder; safe to use from several threads, and processes.

    Args:
        folder: Where it is or will be; made by the caller.
        images: How many images the source has.
        limit: Bytes that pixels.bin may grow to. Images that do not fit are not kept.
        temporary: Remove the folder on closing.

    Raises:
        OSError: where the files cannot be made or read.
    """

    def __init__(self, folder: Path, images: int, *, limit: int, temporary: bool = False) -> None:
        from filelock import FileLock

        self.folder, self.limit, self._temporary = folder, limit, temporary
        self.full = False
        """Whether nothing more is kept, because of the limit or a disk that refuses."""
        self._records: NDArray[np.void] = np.zeros(images, _RECORD)
        self._kinds: NDArray[np.int32] = self._records["kind"]  # a view; 0 for an image that is not kept
        self._checked = np.zeros(images, dtype=bool)
        self._mutex = threading.Lock()  # of this process's threads, as the file lock is of processes
        self._lock = FileLock(folder / ".lock", thread_local=False)
        self._told = False
        self._pixels, self._index = _open(folder / "pixels.bin"), _open(folder / "index.bin")
        with contextlib.suppress(OSError):  # where the file system has no locks, or another process is removing this
            _lock(self._pixels, shared=True)
        self._map: NDArray[np.uint8] = np.empty(0, np.uint8)
        self._known = 0  # bytes of the index that have been read
        self._catch_up()

    def __len__(self) -> int:
        """How many images are kept."""
        return int(np.count_nonzero(self._kinds))

    def get(self, i: int) -> torch.Tensor | None:
        """Image i without a copy; None where it is not kept.

        The tensor's pages belong to this process: writing to it does not change the file.
        """
        if not self._kinds[i]:
            with self._mutex:
                self._catch_up()
        record = self._records[i].copy()
        if not (kind := int(record["kind"])):
            return None
        data = self._bytes(int(record["offset"]), _length(record))
        if not self._checked[i]:
            if zlib.crc32(data.data) != record["checksum"]:
                self._kinds[i] = 0
                return None
            self._checked[i] = True
        pixels = torch.from_numpy(data)
        pixels[::_PAGE].max()  # lets the disk be waited for here, in a thread that works ahead
        return pixels.view(_DTYPES[kind]).view(*record["shape"].tolist())

    def keep(self, i: int, image: torch.Tensor) -> None:
        """Append image i, (C, H, W) uint8 or uint16; unless it is there already, or the cache is full."""
        if self.full or image.numel() == 0:
            return
        data = image.contiguous().numpy().reshape(-1).view(np.uint8)
        kind, shape = next(kind for kind, dtype in _DTYPES.items() if dtype == image.dtype), list(image.shape)
        with self._mutex:
            if self._pixels.closed:
                return
            if os.fstat(self._pixels.fileno()).st_nlink == 0:  # what is written now would fill the disk, out of sight
                self.full = True
                self.tell(f"{self.folder} was deleted: the images that it did not yet hold are decoded in every epoch")
                return
            try:
                with self._lock.acquire(timeout=_PATIENCE, poll_interval=0.002):
                    self._append(i, kind, shape, data)
            except OSError as error:  # filelock's Timeout is one too
                self.full = True
                self.tell(f"no more decoded images can be kept in {self.folder} ({error}); the others are decoded anew")

    def tell(self, message: str) -> None:
        """Warn of a cache that will not hold every image; once, for the first reason makes the others follow."""
        if not self._told:
            self._told = True
            warnings.warn(message, stacklevel=2)

    def close(self) -> None:
        """Close the files. Images that were handed out stay valid, and nothing more is found or kept."""
        with self._mutex:
            self._pixels.close()
            self._index.close()
            self._kinds[:] = 0
            self._map = np.empty(0, np.uint8)
        if self._temporary:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _append(self, i: int, kind: int, shape: list[int], data: NDArray[np.uint8]) -> None:
        self._catch_up()
        if self._kinds[i]:  # another process was faster
            return
        offset = -(-_size(self._pixels) // _ALIGN) * _ALIGN
        if offset + data.size > self.limit:
            self.full = True
            self.tell(f"the cache in {self.folder} has reached its limit: the other images are decoded in every epoch")
            return
        _write(self._pixels, offset, data.data)
        record = np.array([(i, offset, shape, kind, zlib.crc32(data.data))], _RECORD)
        # over the part of a record that a killed process may have left at the end
        _write(self._index, self._known, memoryview(record.tobytes()))
        self._catch_up()
        self._checked[i] = True

    def _catch_up(self) -> None:
        """Take in the records that were appended since the last time, by this process or others."""
        if self._index.closed:
            return
        end = _size(self._index) // _RECORD.itemsize * _RECORD.itemsize
        if end <= self._known:
            return
        self._index.seek(self._known)
        new = np.frombuffer(self._index.read(end - self._known), _RECORD)
        new = new[_plausible(new, len(self._records), _size(self._pixels))]
        self._records[new["image"]] = new
        self._checked[new["image"]] = False
        self._known = end

    def _bytes(self, start: int, length: int) -> NDArray[np.uint8]:
        if start + length > len(self._map):
            with self._mutex:
                self._map = _map(self._pixels)  # tensors over the shorter map keep that one alive
        part = self._map[start : start + length]
        return part if part.flags.writeable else part.copy()


def remove_unless_open(folder: Path) -> bool:
    """Remove a cache that no process has open; whether it was one, and is gone."""
    pixels = folder / "pixels.bin"
    try:
        with contextlib.nullcontext() if os.name == "nt" else open(pixels, "r+b") as file:
            if file is not None:
                _lock(file, shared=False)
            pixels.unlink()  # Windows refuses while a process has it open, and so needs no lock
            shutil.rmtree(folder)
    except OSError:
        return False
    return True


def _plausible(records: NDArray[np.void], images: int, size: int) -> NDArray[np.bool_]:
    """Which records can be right, of those found in an index that a power failure may have damaged."""
    known = (records["kind"] >= 1) & (records["kind"] <= max(_DTYPES))
    named = (records["image"] >= 0) & (records["image"] < images)
    lengths = records["shape"].astype(np.float64).prod(1) * _BYTES[np.where(known, records["kind"], 0)]
    placed = (records["shape"] > 0).all(1) & (records["offset"] >= 0) & (records["offset"] % _ALIGN == 0)
    plausible: NDArray[np.bool_] = known & named & placed & (records["offset"] + lengths <= size)
    return plausible


def _length(record: np.void) -> int:
    channels, height, width = record["shape"].tolist()
    return int(channels * height * width * _BYTES[record["kind"]])


def _open(path: Path) -> IO[bytes]:
    """For reading and writing anywhere, made if it is not there, and never cut short: others may be reading it."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o644)
    return os.fdopen(handle, "r+b", buffering=0)


def _lock(file: IO[bytes], *, shared: bool) -> None:
    """Lock a file until it is closed, beside others that share it or alone; `OSError` where that cannot be at once."""
    if os.name != "nt":
        import fcntl

        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)


def _size(file: IO[bytes]) -> int:
    return os.fstat(file.fileno()).st_size


def _write(file: IO[bytes], offset: int, data: memoryview) -> None:
    file.seek(offset)
    while data:
        data = data[file.write(data) :]  # one call may write only a part


def _map(file: IO[bytes]) -> NDArray[np.uint8]:
    """The whole file, as pages that are this process's own once written to."""
    try:
        return np.asarray(np.memmap(file, mode="c"))
    except OSError:  # the system will not promise so many pages; to read them it need not promise any
        return np.asarray(np.memmap(file, mode="r"))
