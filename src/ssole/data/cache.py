"""Cache of decoded images on disk: filled while the first epoch trains, read by every later epoch and run.

The cache of one set of images is a folder of

    pixels.bin   pixels of the images, in the order in which they were first asked for
    index.bin    for each image of the source: position of its pixels, their shape, bytes per value and checksum
    about.json   description of the cache, for people to read
    .lock        held by a process while it appends

Several processes can share one cache. Each appends the images that it decodes and finds those of the others. A shared
lock on pixels.bin keeps a cache in use from being removed. A record is written after its pixels, and each process
compares these with the checksum when it first reads them: after a power cut every image is right, or decoded again.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
import re
import shutil
import tempfile
import threading
import warnings
import zlib
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray

from ssole.data.base import Source
from ssole.data.storage import cache_folder
from ssole.files import write_json_atomically
from ssole.progress import data_size

DISK_SHARE = 0.5
"""Share of the disk that caches may take by default: of the bytes that are free, or theirs already."""

DECODER = 2
"""Version of :func:`ssole.data.decode.decode`: raise it with every change of the pixels that it returns."""

# Offset of the first byte in pixels.bin; channels, height and width; bytes per value, 0 for an image that is not kept;
# CRC-32 of the pixels' bytes.
_RECORD = np.dtype([("offset", "<i8"), ("shape", "<i4", 3), ("itemsize", "<i4"), ("checksum", "<u4")])
_DTYPES = {1: torch.uint8, 2: torch.uint16}  # by bytes per value
_ALIGN = 64  # images begin at multiples of 64 bytes: 16-bit values need 2, and vector instructions load fast
_PAGE = 4096  # bytes of a page of memory, on most systems
_PATIENCE = 10.0  # seconds to wait for another process to append one image, which takes milliseconds
_TEMPORARY = "-temporary"  # end of the name of a folder that only one run uses


def open_cache(
    source: Source, parent: Path | None, decoding: dict[str, int | None], *, limit: int | None, expected: int
) -> ImageCache | None:
    """Cache of a source's decoded images, opened again or new. None, with a warning, if it cannot be made.

    It is a folder ``SOURCE-WHICH-STATE`` below the parent. The hash WHICH stands for the data's location and the way of
    decoding, STATE for the data's content and the versions of the decoder. A cache of another state is out of date and
    is removed with a warning. If the source cannot tell whether its content changed, the cache is for this run only.

    All caches below the parent share the disk. While they would take more than half of the bytes that are free or
    theirs, the one opened longest ago is removed with a warning, unless a process has it open.

    Args:
        parent: By default the folder ``packed`` in :func:`~ssole.data.storage.cache_folder`.
        decoding: `shrink_to` and `channels` of :func:`ssole.data.decode.decode`.
        limit: Bytes of pixels; by default half of the free bytes of the disk and this cache's own together.
        expected: Bytes that the pixels of all images will take, roughly.
    """
    import PIL

    parent = cache_folder() / "packed" if parent is None else parent
    content = source.fingerprint()
    about = {"source": source.name, "location": source.identity, **decoding}
    state = {"images": len(source), "content": content, "decoder": DECODER, "pillow": PIL.__version__}
    prefix = f"{re.sub(r'[^A-Za-z0-9.-]+', '_', source.name)[:40]}-{_digest(about)}-"
    folder = parent / (prefix + _digest(state))
    try:
        parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            folder = Path(tempfile.mkdtemp(prefix=prefix, suffix=_TEMPORARY, dir=parent))
        folder.mkdir(exist_ok=True)
        write_json_atomically(folder / "about.json", about | state, indent=2)
        room = _make_room(folder, prefix, source.name, expected if limit is None else min(expected, limit))
        cache = ImageCache(folder, len(source), limit=room if limit is None else limit, temporary=content is None)
    except OSError as error:
        warnings.warn(
            f"decoded images cannot be kept in {folder} ({error}), so they are decoded in every epoch: name another "
            "folder by the environment variable SSOLE_CACHE",
            stacklevel=2,
        )
        return None
    if expected > cache.limit:
        cache.warn(
            f"the decoded images of {source.name} will take about {data_size(expected)}, and their cache in {folder} "
            f"may take {data_size(cache.limit)}: about {cache.limit / expected:.0%} of them are kept, and the others "
            "are decoded in every epoch. Make room on the disk, or name a folder on a larger one by the environment "
            "variable SSOLE_CACHE"
        )
    return cache


class ImageCache:
    """Cache of decoded images in one folder; safe to use from several threads and processes.

    Args:
        folder: The cache's folder, which must exist.
        images: Number of images of the source.
        limit: Bytes that pixels.bin may grow to. Images that do not fit are not kept.
        temporary: Remove the folder on closing.

    Raises:
        OSError: the files cannot be made or read.
    """

    def __init__(self, folder: Path, images: int, *, limit: int, temporary: bool = False) -> None:
        from filelock import FileLock

        self.folder, self.limit, self._temporary = folder, limit, temporary
        self.full = False
        """Whether no more images are kept: the limit is reached, or the disk refused."""
        self._warned = False
        self._checked = np.zeros(images, dtype=bool)
        self._thread_lock = threading.Lock()  # held to append and to close
        self._process_lock = FileLock(folder / ".lock", thread_local=False)
        self._pixels, self._index = _open(folder / "pixels.bin"), _open(folder / "index.bin")
        with suppress(OSError):  # the file system has no locks, or another process is removing this cache
            _flock(self._pixels, shared=True)
        self._index.truncate(images * _RECORD.itemsize)  # fills it with zeros, which take no space, if it was shorter
        self._records = np.asarray(np.memmap(self._index, dtype=_RECORD, mode="r"))  # shows what other processes write
        self._map: NDArray[np.uint8] = np.empty(0, np.uint8)

    def __len__(self) -> int:
        """Number of images kept."""
        return int(np.count_nonzero(self._records["itemsize"]))

    def get(self, i: int) -> torch.Tensor | None:
        """Image i without a copy, (C, H, W) uint8 or uint16; None if it is not kept.

        The tensor's memory belongs to this process: writing to it does not change the file.
        """
        checked = self._checked[i]  # before the record: `_append` sets it only when the record is complete
        offset, shape, itemsize, checksum = self._records[i].item()
        if itemsize not in _DTYPES:
            return None
        data = self._bytes(offset, length := math.prod(shape.tolist()) * itemsize)
        if not checked and (not 0 < length == len(data) or zlib.crc32(data.data) != checksum):
            return None
        self._checked[i] = True
        pixels = torch.from_numpy(data)
        pixels[::_PAGE].max()  # waits for the disk here, in a thread that works ahead
        return pixels.view(_DTYPES[itemsize]).view(shape.tolist())

    def keep(self, i: int, image: torch.Tensor) -> None:
        """Append image i, (C, H, W) uint8 or uint16, unless it is kept already or the cache is full."""
        if self.full or image.numel() == 0:
            return
        with self._thread_lock:
            if self._pixels.closed:
                return
            try:
                if os.fstat(self._pixels.fileno()).st_nlink == 0:  # writing on would fill the disk with a nameless file
                    raise OSError("it was deleted")
                with self._process_lock.acquire(timeout=_PATIENCE, poll_interval=0.002):
                    if self.get(i) is None:  # no other process was faster
                        self._append(i, image)
            except (OSError, NotImplementedError) as error:  # of filelock: a timeout, or a file system without locks
                self.full = True
                self.warn(
                    f"no more decoded images are kept in {self.folder} ({error}), so the others are decoded in every "
                    "epoch: make room there, or name another folder by the environment variable SSOLE_CACHE"
                )

    def warn(self, message: str) -> None:
        """Warn once that not every image will be kept; later reasons follow from the first."""
        if not self._warned:
            self._warned = True
            warnings.warn(message, stacklevel=2)

    def close(self) -> None:
        """Close the files. Images that were handed out stay valid; no more are found or kept."""
        with self._thread_lock:
            self._pixels.close()
            self._index.close()
            self._records, self._map = np.zeros_like(self._records), np.empty(0, np.uint8)
        if self._temporary:
            with suppress(OSError):  # on Windows while an image is in use; a later run removes it by its about.json
                (self.folder / "pixels.bin").unlink(missing_ok=True)
                shutil.rmtree(self.folder, ignore_errors=True)

    def _append(self, i: int, image: torch.Tensor) -> None:
        data = image.contiguous().numpy().reshape(-1).view(np.uint8).data
        offset = math.ceil(os.fstat(self._pixels.fileno()).st_size / _ALIGN) * _ALIGN
        if offset + len(data) > self.limit:
            raise OSError("it has reached its limit")
        _write(self._pixels, offset, data)
        record = np.array([(offset, tuple(image.shape), image.element_size(), zlib.crc32(data))], _RECORD)
        # not through the memory map, where a full disk would kill the process
        _write(self._index, i * _RECORD.itemsize, memoryview(record.tobytes()))
        self._checked[i] = True

    def _bytes(self, start: int, length: int) -> NDArray[np.uint8]:
        """Bytes of pixels.bin; fewer than asked for where the record is damaged."""
        pixels = self._map  # another thread may replace it, even by a shorter map
        if len(pixels) < start + length <= os.fstat(self._pixels.fileno()).st_size:
            pixels = self._map = _memory_map(self._pixels)  # tensors over the shorter map keep that one alive
        part = pixels[start : start + length]
        return part if part.flags.writeable else part.copy()


def remove_unless_open(folder: Path) -> bool:
    """Remove a cache that no process has open. Returns whether it is gone."""
    pixels = folder / "pixels.bin"
    try:
        with nullcontext() if os.name == "nt" else open(pixels, "r+b") as file:
            if file is not None:
                _flock(file, shared=False)
            pixels.unlink()  # Windows refuses while a process has it open, and so needs no lock
            shutil.rmtree(folder)
    except OSError:
        return False
    return True


def _digest(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


def _make_room(folder: Path, prefix: str, name: str, expected: int) -> int:
    """Remove caches that are out of date, then those opened longest ago; returns the bytes that this one may take."""
    others = _caches(folder.parent)
    own = others.pop(folder, 0)
    for other in list(others):
        of_these_images, left_by_a_killed_run = other.name.startswith(prefix), other.name.endswith(_TEMPORARY)
        if (of_these_images or left_by_a_killed_run) and remove_unless_open(other):
            del others[other]
            if not left_by_a_killed_run:
                warnings.warn(
                    f"{name} changed since its decoded images were kept in {other} (or how they are decoded did): they "
                    "are removed, and the images are decoded anew",
                    stacklevel=3,
                )
    free, taken = shutil.disk_usage(folder).free, sum(others.values())
    together = int(DISK_SHARE * (free + own + taken))
    for other, size in others.items():
        if taken + max(own, expected) <= together:
            break
        if remove_unless_open(other):
            free, taken = free + size, taken - size
            warnings.warn(
                f"the decoded images in {other} are removed, as used least recently, to make room for those of {name}",
                stacklevel=3,
            )
    return int(DISK_SHARE * (free + own))


def _caches(parent: Path) -> dict[Path, int]:
    """Caches below a folder and the bytes of their pixels; those opened longest ago come first."""
    found = []
    for about in parent.glob("*/about.json"):
        with suppress(FileNotFoundError):  # it is no cache, or another process has just removed it
            size = (about.parent / "pixels.bin").stat().st_size
            found.append((about.stat().st_mtime, about.parent, size))  # about.json is written on opening
    return {cache: size for _, cache, size in sorted(found)}


def _open(path: Path) -> IO[bytes]:
    """File open for reading and writing; made if missing, and never truncated, because others may be reading it."""
    path.touch()
    return open(path, "r+b", buffering=0)


def _flock(file: IO[bytes], *, shared: bool) -> None:
    """Lock a file, shared or alone, until it is closed; `OSError` if that is not possible at once."""
    if os.name != "nt":
        import fcntl

        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)


def _write(file: IO[bytes], offset: int, data: memoryview) -> None:
    file.seek(offset)
    while data:
        data = data[file.write(data) :]  # one call may write only a part


def _memory_map(file: IO[bytes]) -> NDArray[np.uint8]:
    """Memory map of the whole file, copied on write. Unlike NumPy's, it does not move the file's position."""
    try:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except OSError:  # the system may refuse to reserve memory for copies; reading needs none
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return np.frombuffer(mapped, np.uint8)
