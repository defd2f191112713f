"""Files and folders that are written whole or not at all, and JSON files that may be damaged."""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ssole.errors import ConfigError

LEFTOVER = ".ssole-tmp"
"""Suffix of files and folders that a killed writer leaves behind; their names also begin with a dot."""

_WAITS = (0.05, 0.1, 0.2, 0.4, 0.8) if os.name == "nt" else ()  # seconds between attempts to rename


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Context that adds the name of this file to an `OSError` without one (a full disk) or of a temporary file."""
    try:
        yield
    except OSError as error:
        named = error.filename is not None and not is_leftover(Path(os.fsdecode(error.filename)))
        if error.errno is None or named:
            raise
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, flush it to the disk, and rename it into place.

    A reader, or whoever comes after a crash or a power cut, sees the old file or the new one and never a part of
    either. The file has the permissions that the umask gives. A link stays, and the file that it names is replaced. A
    pipe or a device, such as /dev/stdout, is written to.
    """
    with naming(path):
        if path.exists() and not path.is_file() and not path.is_dir():
            with tempfile.TemporaryDirectory() as folder:
                write(temporary := Path(folder, path.name))
                path.write_bytes(temporary.read_bytes())
        else:  # /dev/stdout would be no path of a pipe any more if it were resolved before
            _replace(Path(os.path.realpath(path)), write)


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    """Replace a file, or make it."""
    temporary = path.parent / f".{_beginning(path.name)}.{secrets.token_hex(4)}{LEFTOVER}"
    open(temporary, "xb").close()
    permissions = stat.S_IMODE(temporary.stat().st_mode)
    try:
        write(temporary)
        temporary.chmod(permissions)  # the writer may have made another file in its place
        _flush(temporary)
        _rename(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _flush_folder(path.parent)


def _rename(old: Path, new: Path) -> None:
    """Rename, in place of what is there. On Windows, virus scanners and indexers hold new files for a moment."""
    for wait in _WAITS:
        try:
            return os.replace(old, new)
        except PermissionError:
            time.sleep(wait)
    return os.replace(old, new)


def _beginning(name: str) -> str:
    """Beginning of a name, short enough for the temporary name around it: a name has at most 255 bytes."""
    return name.encode("utf-8", "ignore")[:230].decode("utf-8", "ignore")


def _flush(path: Path) -> None:
    """Flush a file to the disk."""
    if path.is_file():
        with open(path, "r+b") as file:  # Windows flushes only files that may be written to
            os.fsync(file.fileno())


def write_bytes_atomically(path: Path, data: bytes) -> None:
    """:func:`write_atomically` for bytes."""
    write_atomically(path, lambda temporary: temporary.write_bytes(data))


def write_text_atomically(path: Path, text: str) -> None:
    """:func:`write_atomically` for UTF-8 text."""
    write_bytes_atomically(path, text.encode("utf-8"))


def write_json_atomically(path: Path, values: Any, *, indent: int | None = 1) -> None:
    """:func:`write_atomically` for values as JSON; `ValueError` for NaN or infinity, which JSON does not have."""
    write_text_atomically(path, json.dumps(values, indent=indent, allow_nan=False) + "\n")


def write_tensors_atomically(path: Path, tensors: Mapping[str, Any], metadata: Mapping[str, str] | None = None) -> None:
    """:func:`write_atomically` for torch's tensors as a safetensors file; a full disk is an `OSError` there too."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    def write(temporary: Path) -> None:
        try:
            save_file(dict(tensors), temporary, None if metadata is None else dict(metadata))
        except SafetensorError as error:
            found = re.search(r"I/O error: (.*?)(?: \(os error (\d+)\))?$", str(error))
            reason, number = found.groups() if found else (str(error), None)
            raise OSError(int(number or errno.EIO), reason) from error

    write_atomically(path, write)


def write_yaml_atomically(path: Path, values: Any) -> None:
    """:func:`write_atomically` for plain values as YAML, in their own order."""
    import yaml

    write_text_atomically(path, yaml.safe_dump(values, sort_keys=False))


@contextmanager
def folder_atomically(folder: Path) -> Iterator[Path]:
    """Context with a new, empty folder to fill, which then takes its place as `folder`: whole, or not at all.

    `folder` is new or empty (:func:`require_new_folder`). Its parents are made. One that exists may be a link, a mount
    or the working directory, so it stays, and the entries are moved into it; only a kill during these renames leaves a
    part of them.
    """
    folder = Path(os.path.realpath(folder))
    is_there = folder.exists()
    home, suffix = (folder, LEFTOVER) if is_there else (folder.parent, "")
    home.mkdir(parents=True, exist_ok=True)
    prefix = f".{_beginning(folder.name)}."
    with naming(folder), tempfile.TemporaryDirectory(dir=home, prefix=prefix, suffix=suffix) as temporary:
        place = Path(temporary) / folder.name
        place.mkdir()
        yield place
        for path in place.rglob("*"):
            _flush(path)
        if is_there:
            _move_entries(place, folder)
        else:
            _rename(place, folder)
    _flush_folder(home)


def _move_entries(place: Path, folder: Path) -> None:
    """Move all entries into a folder that exists, or none if that fails or is interrupted."""
    require_new_folder(folder)  # another process may have filled it meanwhile
    begun: list[str] = []
    try:
        for entry in sorted(place.iterdir()):
            begun.append(entry.name)
            os.replace(entry, folder / entry.name)
    except BaseException:
        for name in begun:
            if not (place / name).exists():
                os.replace(folder / name, place / name)
        raise


def require_new_folder(folder: Path) -> None:
    """Raise a `ConfigError` unless a folder is new, or empty but for leftovers, and can be written to."""
    if folder.exists() and (not folder.is_dir() or not all(map(is_leftover, folder.iterdir()))):
        raise ConfigError(
            f"{folder} is not an empty folder, and nothing is overwritten: remove it, or choose another (--out)"
        )
    require_writable(folder, "choose another folder (--out)")


def require_writable(folder: Path, otherwise: str) -> None:
    """Raise a `ConfigError` that says what to do unless a folder, or the nearest one above it, can be written to."""
    there = next((path for path in (folder, *Path(os.path.abspath(folder)).parents) if path.exists()), None)
    if there is None or not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(f"{there or folder} may not be written to: {otherwise}")


def free_path(path: Path, suffix: str = "") -> Path:
    """Path with a suffix that nothing has yet: as given, or with the first free number from 2 on, ``runs/mine-2``."""
    free, number = path.with_name(f"{path.name}{suffix}"), 2
    while free.exists():
        free, number = path.with_name(f"{path.name}-{number}{suffix}"), number + 1
    return free


def is_leftover(path: Path) -> bool:
    """Whether a path has the name of a temporary file or folder of ours or of safetensors, as a kill leaves it."""
    ours = path.name.startswith(".") and path.name.endswith(LEFTOVER)
    return ours or re.fullmatch(r"\.tmp\w{6}", path.name) is not None


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of writers that were killed. Nobody may be writing to the folder meanwhile."""
    for path in filter(is_leftover, folder.iterdir()):
        if path.is_file():
            path.unlink()


@contextmanager
def locked(path: Path, taken: str, *, remove: bool = False) -> Iterator[None]:
    """Context with a lock file that this process holds. The operating system releases it however the process ends.

    With `remove`, the file is removed at the end.

    Raises:
        ConfigError: another process holds it (the message is `taken`), or the file system has no locks.
    """
    from filelock import FileLock, Timeout

    try:
        held = FileLock(path).acquire(blocking=False)
    except Timeout:
        raise ConfigError(taken) from None
    except NotImplementedError as error:
        raise ConfigError(f"{path.parent} is on a file system without locks ({error}): choose another folder") from None
    with held:
        try:
            yield
        finally:
            if remove:
                with suppress(OSError):  # Windows removes no open file
                    path.unlink()


def require_regular(path: str | os.PathLike[str]) -> None:
    """Raise `OSError` for a pipe, socket or device, because reading one may wait for ever."""
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # opening a folder has an error of its own
        raise OSError("not a regular file but a pipe, socket or device")


def read_json(path: Path) -> dict[str, Any]:
    """Mapping that a JSON file holds.

    Raises:
        ConfigError: the file is missing, cannot be read, or holds something else; the message names it.
    """
    try:
        require_regular(path)
        values = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read ({getattr(error, 'strerror', None) or error})") from None
    return values


@contextmanager
def reading(path: Path, hint: str) -> Iterator[None]:
    """Context of taking values out of a file: those that are missing or wrong are a ConfigError with the hint."""
    try:
        yield
    except (KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} is damaged ({error!r}): {hint}") from None


def parse_json(text: str) -> dict[str, Any]:
    """Mapping that a JSON text holds; `ValueError` if it holds something else."""
    try:
        values = json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(values, dict):
        raise ValueError(f"it holds no mapping but {str(values)[:40]!r}")
    return values


def _flush_folder(folder: Path) -> None:
    """Flush the names in a folder to the disk, so that a rename survives a power cut."""
    if os.name == "nt":  # which opens no folders
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems without such a flush
            raise
    finally:
        os.close(handle)
