"""Tar shards in the layout of WebDataset as sources, and the index by which their images are read."""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from ssole.data.base import Source
from ssole.data.folder import image_suffixes, suffix_counts
from ssole.data.labels import number_texts
from ssole.data.storage import (
    CONNECTIONS,
    absolute,
    cache_folder,
    common_folder,
    data_errors,
    file_fingerprint,
    folder_of,
    is_remote,
    name_of,
    open_binary,
    read_bytes,
    relative_to,
)
from ssole.errors import DataError, listed, without_secrets
from ssole.files import write_atomically

_VERSION = 2  # of the index
# Suffixes of members that may hold a label, the likeliest first, and the most bytes that such a member has.
_LABELS = {"cls": 256, "json": 1 << 20, "txt": 64}
_COMPRESSED = {b"\x1f\x8b": "gunzip", b"BZh": "bunzip2", b"\xfd7zXZ\x00": "unxz", b"\x28\xb5\x2f\xfd": "unzstd"}
_BLOCK = 512  # bytes; a tar consists of blocks of this size
_PADDING = 1 << 20  # bytes of zeros after the last member; tar writes 10 KiB or less unless told otherwise
_MOST_LEFT_OUT = 8  # for each image that is kept; with more, the names were hardly meant to form samples
_METADATA_KEY = b"ssole"  # of the index's entry with its conditions, and with the facts about the whole tar


class TarSource(Source):
    """Source of images in tar files in the layout of WebDataset.

    Members whose names agree up to the first dot belong to one sample: ``a/1.jpg``, ``a/1.cls``. Its image is known by
    its suffix. Its label is an integer or name in ``.cls``, else ``"label"`` in ``.json``, else an integer in ``.txt``;
    samples without one have −1. Nothing is unpacked, so names of members cannot lead anywhere.

    Images are read in any order, at offsets from an index that is made once for each shard (see
    :func:`~ssole.data.tars.tar_index`). Compressed tars do not allow that. If a tar breaks off, its complete members
    are used, and a warning says so.

    Args:
        files: Tar files, as paths or URLs. Images have the order of files and of members.
        root: Folder or URL. An image's id is ``path:member`` with the tar's path below it. By default it is the deepest
            folder that holds all of the files.

    Raises:
        DataError: a tar cannot be read or is compressed, or no tar holds an image.
    """

    def __init__(
        self,
        files: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        *,
        root: str | os.PathLike[str] | None = None,
    ) -> None:
        import pyarrow as pa

        self._files = [os.fspath(file) for file in ([files] if isinstance(files, (str, os.PathLike)) else files)]
        if not self._files:
            raise DataError("No tar file was given.")
        self.identity = without_secrets("\n".join(sorted(map(absolute, self._files))))
        folder = common_folder(self._files) if root is None else os.fspath(root)
        self._names = [relative_to(file, folder) for file in self._files]
        self.name = listed([name_of(file) for file in self._files], 1)
        with ThreadPoolExecutor(CONNECTIONS if is_remote(self._files[0]) else 1) as pool:
            indices = list(pool.map(tar_index, self._files))
        self.ignored = sum((index.ignored for index in indices), Counter[str]())
        self.hidden = sum(index.hidden for index in indices)
        for problem in [index.problem for index in indices if index.problem is not None]:
            warnings.warn(problem, stacklevel=2)
        self._starts = np.cumsum([0] + [len(index.table) for index in indices])
        table = pa.concat_tables([index.table for index in indices])
        if len(table) == 0:
            others = suffix_counts(self.ignored) or "nothing"
            raise DataError(f"{self.name} holds no images (known by suffixes such as .jpg), only {others}.")
        left_out = sum(count for suffix, count in self.ignored.items() if suffix in image_suffixes())
        if left_out > _MOST_LEFT_OUT * len(table):
            said = f"{self.name}: {left_out} of {len(table) + left_out} images are left out as further ones of a sample"
            warnings.warn(f"{said}: its name ends at the first dot, so rename images with more dots", stacklevel=2)
        self._members = table.column("name").combine_chunks()
        self._offsets, self._sizes = (table.column(name).to_numpy() for name in ("offset", "size"))
        self.labels, self.classes = number_texts(table.column("label"))

    def __len__(self) -> int:
        return len(self._offsets)

    def id(self, i: int) -> str:
        return f"{self._names[self._shard(i)]}:{os.fsdecode(self._members[i].as_py())}"

    def read(self, i: int) -> bytes:
        start = int(self._offsets[i])
        return read_bytes(self._files[self._shard(i)], where=self.id(i), start=start, end=start + int(self._sizes[i]))

    def files(self) -> list[str]:
        return self._files

    def _shard(self, i: int) -> int:
        return int(np.searchsorted(self._starts, i, side="right")) - 1


class TarIndex(NamedTuple):
    """Index of a tar."""

    table: Any  # Arrow's, one row an image: name of the member (large_binary), offset, size (int64), label (string)
    ignored: Counter[str]  # number of other members, by suffix
    hidden: int  # number of members whose name begins with a dot
    problem: str | None  # a sentence if the tar is damaged; images before the damage are in the table


def tar_index(location: str) -> TarIndex:
    """Index of a tar, read from its file, or built and written to it.

    The file is a hidden one beside the tar, or in the cache folder if that is not writable. The index is built again if
    the tar has changed, or if Pillow opens images with other suffixes.

    Raises:
        DataError: the file cannot be read, is no tar, or is compressed.
    """
    fingerprint, _ = file_fingerprint(location)
    changed = None if is_remote(location) else os.stat(location).st_ctime_ns  # two tars may share size and time
    conditions = {"version": _VERSION, "fingerprint": [fingerprint, changed], "suffixes": sorted(image_suffixes())}
    key = hashlib.sha256(os.fsencode(absolute(location))).hexdigest()[:32]
    paths = [cache_folder() / "tar-index" / f"{key}.arrow"]
    if not is_remote(location):
        paths.insert(0, Path(folder_of(location), f".{name_of(location)}.ssole-index"))
    for path in paths:
        if (index := _load(path, conditions)) is not None:
            return index
    index = build_index(location)
    for path in paths:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _save(path, index, conditions)
            return index
        except OSError as error:
            reason = f"{path}: {error.strerror or error}"
    warnings.warn(f"The index of {name_of(location)} is made anew each time: {reason}", stacklevel=2)
    return index


def build_index(location: str) -> TarIndex:
    """Index made from all headers and labels of a tar; see :func:`tar_index`."""
    import pyarrow as pa

    with open_binary(location) as file, data_errors(f"Cannot read {location}"):  # such as a server without ranges
        head = file.read(6)
        if command := next((c for start, c in _COMPRESSED.items() if head.startswith(start)), None):
            raise DataError(
                f"{location} is compressed, and a compressed tar can only be read from its beginning. Unpack it once "
                f"with {command}: compressing images once more saves hardly any space."
            )
        shard = _Shard()
        problem = shard.read(file, location)
    found = [(image, shard.labels.get(key, {})) for key, image in shard.images.items() if image is not None]
    columns = {
        "name": pa.array([os.fsencode(image.name) for image, _ in found], pa.large_binary()),
        "offset": pa.array([image.offset for image, _ in found], pa.int64()),
        "size": pa.array([image.size for image, _ in found], pa.int64()),
        "label": pa.array([next((texts[k] for k in _LABELS if k in texts), None) for _, texts in found], pa.string()),
    }
    return TarIndex(pa.table(columns), shard.ignored, shard.hidden, problem)


class _Image(NamedTuple):
    """Name of an image in a tar, and position of its bytes."""

    name: str
    offset: int
    size: int


@dataclass
class _Shard:
    """Contents of a tar, as far as it was read; images and labels by the key of their sample."""

    images: dict[str, _Image | None] = field(default_factory=dict)  # in the order of first members; None if none yet
    labels: dict[str, dict[str, str]] = field(default_factory=dict)  # texts of a sample, by extension
    ignored: Counter[str] = field(default_factory=Counter)
    hidden: int = 0

    def read(self, file: BinaryIO, location: str) -> str | None:
        """Add all complete members. Returns a sentence if the tar is damaged, else None."""
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        try:
            tar = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115 - closing it would do nothing
        except tarfile.TarError as error:
            raise DataError(f"{location} is not a tar archive ({error}).") from error
        cut = False
        for member in _members(tar):
            cut = member.offset_data + member.size > size
            if not cut:
                self.add(member, file)
        file.seek(tar.offset)
        # A whole tar ends with a few zeros. After many more, what looks like its end may be a hole in the middle.
        if not cut and size - tar.offset <= _PADDING and len(rest := file.read()) >= _BLOCK and not any(rest):
            return None
        where = f"{without_secrets(location)} breaks off or is damaged after byte {min(tar.offset, size)}"
        return f"{where}: what comes after that is lost."

    def add(self, member: tarfile.TarInfo, file: BinaryIO) -> None:
        """Add one member as an image, a label or neither."""
        if member.isdir():
            return
        folder, _, name = member.name.rpartition("/")
        stem, _, extension = name.partition(".")
        key, extension, suffix = f"{folder}/{stem}", extension.lower(), os.path.splitext(name)[1].lower()
        if name.startswith("."):
            self.hidden += 1
        elif not member.isreg() or member.issparse():  # links name other files; sparse ones are not stored in one piece
            self.ignored["link, device or sparse file"] += 1
        elif suffix in image_suffixes():
            self.add_image(key, _Image(member.name, member.offset_data, member.size))
        elif (text := _label(member, extension, file)) is not None:
            self.images.setdefault(key, None)
            self.labels.setdefault(key, {})[extension] = text
        else:
            self.ignored[suffix] += 1

    def add_image(self, key: str, image: _Image) -> None:
        """Add an image. Of several with one key (``1.jpg``, ``1.mask.png``), the first without a second dot is kept."""
        other = self.images.get(key)
        if other is not None and other.name != image.name:  # an equal name was appended to replace the first
            new, old = (path.rpartition("/")[2].count(".") for path in (image.name, other.name))
            if not new < 2 <= old:
                image, other = other, image
            self.ignored[os.path.splitext(other.name)[1].lower()] += 1
        self.images[key] = image


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Members up to the end, or up to the first damaged header."""
    while here := tar.offset:  # 0 after opening an empty archive, where Python 3.10 would seek to -1
        try:
            member = tar.next()
        except (tarfile.TarError, ValueError, OverflowError, RecursionError):  # some Python versions let these escape
            return
        # some versions of tarfile follow a negative size backwards, and never end
        if member is None or member.size < 0 or tar.offset < here:
            return
        yield member
        tar.members.clear()  # type: ignore[attr-defined] # they would take memory


def _label(member: tarfile.TarInfo, extension: str, file: BinaryIO) -> str | None:
    """Label in a member, as text. In a ``.txt`` only an integer is a label, because other texts may be captions."""
    if member.size > _LABELS.get(extension, -1):
        return None
    file.seek(member.offset_data)
    try:
        text = file.read(member.size).decode("utf-8").strip()
        value = json.loads(text)["label"] if extension == "json" else int(text) if extension == "txt" else text
        str(value).encode("utf-8")  # JSON may contain halves of surrogate pairs, which are not valid text
    except (ValueError, KeyError, TypeError, IndexError, RecursionError):
        return None
    return str(value) if isinstance(value, (int, str)) and not isinstance(value, bool) and value != "" else None


def _load(path: Path, conditions: dict[str, object]) -> TarIndex | None:
    """Index in a file; None if there is none, it is damaged, or it was made under other conditions."""
    from pyarrow import ArrowException, feather

    try:
        table = feather.read_table(path, memory_map=False)
        table.validate(full=True)  # nothing later checks offsets within Arrow's buffers
        facts = json.loads(table.schema.metadata[_METADATA_KEY])
        if any(facts[name] != value for name, value in conditions.items()):
            return None
        return TarIndex(table, Counter(facts["ignored"]), facts["hidden"], facts["problem"])
    except (ArrowException, OSError, ValueError, KeyError, TypeError):
        return None


def _save(path: Path, index: TarIndex, conditions: dict[str, object]) -> None:
    from pyarrow import feather

    facts = {**conditions, "ignored": index.ignored, "hidden": index.hidden, "problem": index.problem}
    table = index.table.replace_schema_metadata({_METADATA_KEY: json.dumps(facts)})
    write_atomically(path, lambda temporary: feather.write_feather(table, str(temporary), compression="zstd"))
