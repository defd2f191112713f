"""A disk whose operations are counted, and of which one fails, as do all after it."""

from __future__ import annotations

import builtins
import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
from safetensors import SafetensorError

FULL, READ_ONLY = OSError(errno.ENOSPC, "No space left on device"), OSError(errno.EROFS, "Read-only file system")


@contextmanager
def small_files(most: int = 4096) -> Iterator[None]:
    """Context in which no file of this process can grow above so many bytes: an error of the system, as a full disk."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


class Disk:
    """File operations below a folder, in their order. The one of number `fails` raises an error, as do all after it.

    Only removing works again on a full disk.
    """

    def __init__(self, folder: Path, *, fails: int | None = None, error: OSError = FULL) -> None:
        self.folder, self.fails, self.error = folder, fails, error
        self.done: list[str] = []
        self.failed = False

    def count(self, kind: str, path: Any) -> None:
        """Note an operation, or let it fail."""
        name = os.fspath(path) if isinstance(path, (str, os.PathLike)) else os.readlink(f"/proc/self/fd/{path}")
        if not Path(name).is_relative_to(self.folder) or "tensorboard" in name or name.endswith(".lock"):
            return
        first = len(self.done) == self.fails and not self.failed
        if first or (self.failed and (kind != "remove" or self.error is READ_ONLY)):
            self.failed = True
            raise self.error
        self.done.append(f"{kind} {Path(name).relative_to(self.folder)}")

    @contextmanager
    def mounted(self) -> Iterator[None]:
        """Context in which the operations of this process are counted."""
        fsync, replace, unlink, write_bytes = os.fsync, os.replace, Path.unlink, Path.write_bytes
        plain_open, save_file = builtins.open, safetensors.torch.save_file

        def opened(path: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
            writes = not isinstance(path, int) and set(mode) & set("wax+")
            if writes:
                self.count("open", path)
            file = plain_open(path, mode, *arguments, **options)
            return File(file, self, path) if writes else file

        def written(path: Path, data: bytes) -> int:
            with plain_open(path, "wb") as file:
                file.write(data[: len(data) // 2])
                self.count("write", path)
            return write_bytes(path, data)

        def saved(tensors: Any, path: Any, metadata: Any = None) -> None:
            try:
                self.count("write", path)
            except OSError as error:
                Path(path).touch()
                raise SafetensorError(f"Error while serializing: I/O error: {error.strerror}") from error
            save_file(tensors, path, metadata)

        def before(kind: str, act: Callable[..., Any]) -> Callable[..., Any]:
            def counted(path: Any, *arguments: Any, **options: Any) -> Any:
                self.count(kind, path)
                return act(path, *arguments, **options)

            return counted

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "fsync", before("flush", fsync))
            patch.setattr(os, "replace", before("rename", replace))
            patch.setattr(Path, "write_bytes", written)
            patch.setattr(builtins, "open", opened)
            patch.setattr(safetensors.torch, "save_file", saved)
            patch.setattr(Path, "unlink", lambda path, **options: self.removed(path, unlink, options))
            yield

    def removed(self, path: Path, unlink: Callable[..., None], options: dict[str, Any]) -> None:
        """Remove a file; temporary ones can always be removed, which is all that cleaning up after a fault needs."""
        if not path.name.endswith(".ssole-tmp"):
            self.count("remove", path)
        unlink(path, **options)


class File:
    """File whose writes are counted by a disk. A write that fails has written half."""

    def __init__(self, file: Any, disk: Disk, path: Any) -> None:
        self.file, self.disk, self.path = file, disk, path

    def write(self, text: Any) -> int:
        try:
            self.disk.count("write", self.path)
        except OSError:
            self.file.write(text[: len(text) // 2])
            self.file.flush()
            raise
        return int(self.file.write(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def __enter__(self) -> File:
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()
