"""Images in tar shards, as WebDataset lays them out, read at their offsets from an index."""

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
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ssole.data.arrow import load_table, save_table
from ssole.data.base import files_digest, number_texts
from ssole.data.folder import image_suffixes, kinds
from ssole.data.remote import is_remote
from ssole.data.storage import (
    CONNECTIONS,
    cache_folder,
    common_folder,
    folder_of,
    name_of,
    open_binary,
    place_of,
    read_bytes,
    relative_to,
    stamp,
    versions_digest,
)
from ssole.errors import DataError


class TarSource:
    """The images of tar files in the layout of WebDataset; a :class:`~ssole.data.base.Source`.

    Members whose names agree up to the first dot belong to one sample: ``a/1.jpg``, ``a/1.cls``. Its image is known by
    the suffix. Its label is an integer or name in ``.cls``, else ``"label"`` in ``.json``, else an integer in ``.txt``;
    samples without one have −1. Names of members are only ever read as text: nothing is unpacked.

    Images are read at their offsets, in any order, from an index that is made once for each shard (see
    :func:`~ssole.data.tars.tar_index`). Compressed tars do not allow that. Of a tar that breaks off the whole
    members are used; `.problems` says so, and so does a warning.

    Args:
        files: Tar files, as paths or URLs; images follow their order, and within one that of its members.
        root: An image's id is ``path:member`` with the tar's path below this folder or URL, by default the deepest that
            holds all of the files.

    Attributes:
        place: Absolute paths or URLs of the tars, one a line.
        ignored: How many members that are neither image nor label there are, by suffix.
        hidden: How many members there are whose name begins with a dot.
        problems: A sentence on each tar that breaks off or is damaged.

    Raises:
        DataError: where a tar cannot be read or is compressed, or none holds an image.
    """

    labels: NDArray[np.int64] | None

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
        self.place = place_of(self._files)
        folder = common_folder(self._files) if root is None else os.fspath(root)
        self._names = [relative_to(file, folder) for file in self._files]
        more = f" and {len(self._files) - 1} more" if len(self._files) > 1 else ""
        self.name = name_of(self._files[0]) + more
        with ThreadPoolExecutor(CONNECTIONS if is_remote(self._files[0]) else 1) as pool:
            indices = list(pool.map(tar_index, self._files))
        self.ignored = sum((index.ignored for index in indices), Counter[str]())
        self.hidden = sum(index.hidden for index in indices)
        self.problems = [index.problem for index in indices if index.problem is not None]
        for problem in self.problems:
            warnings.warn(problem, stacklevel=2)
        self._starts = np.cumsum([0] + [len(index.table) for index in indices])
        table = pa.concat_tables([index.table for index in indices]).combine_chunks()
        if len(table) == 0:
            others = kinds(self.ignored) or "nothing"
            raise DataError(f"{self.name} holds no images (known by suffixes such as .jpg), only {others}.")
        self._members = table.column("name").combine_chunks()
        self._offsets, self._sizes = (table.column(name).to_numpy() for name in ("offset", "size"))
        self.labels, self.classes = number_texts(table.column("label"), where=f"The labels of {self.name}")

    def __len__(self) -> int:
        return len(self._offsets)

    def id(self, i: int) -> str:
        return f"{self._names[self._shard(i)]}:{os.fsdecode(self._members[i].as_py())}"

    def read(self, i: int) -> bytes:
        """The encoded bytes of image i; `DataError` where they cannot be read."""
        start = int(self._offsets[i])
        return read_bytes(self._files[self._shard(i)], where=self.id(i), start=start, end=start + int(self._sizes[i]))

    def fingerprint(self) -> str | None:
        """Changes when a file gets another size or time, or, of a remote one, what its server keeps in place of that.

        None where a server tells no more than the size.
        """
        return versions_digest(self._files) if is_remote(self._files[0]) else files_digest("", self._files)

    def _shard(self, i: int) -> int:
        return int(np.searchsorted(self._starts, i, side="right")) - 1


_VERSION = 1  # of what the index holds
_LABELS = ("cls", "json", "txt")  # members that may hold a label, the likeliest first
_LONGEST = {"cls": 256, "json": 1 << 20, "txt": 64}  # bytes a member with a label has at most; others are left alone
_COMPRESSED = {
    b"\x1f\x8b": "gunzip",
    b"BZh": "bunzip2",
    b"\xfd7zXZ\x00": "unxz",
    b"\x28\xb5\x2f\xfd": "unzstd",
}
_BLOCK = 512  # bytes; tars are made of such


@dataclass(frozen=True, kw_only=True)
class TarIndex:
    """What a tar holds.

    Attributes:
        table: An Arrow table of images with the columns name (large_binary, the member's), offset, size (int64) and
            label (string, perhaps null).
        ignored: How many other files there are, by suffix.
        hidden: How many files there are whose name begins with a dot.
        problem: What is wrong with the tar, if anything; the images before that are in the table.
    """

    table: Any
    ignored: Counter[str]
    hidden: int
    problem: str | None


def tar_index(location: str) -> TarIndex:
    """The index of a tar: read from the file kept for it, or made and kept.

    It is kept beside the tar as a hidden file, or in the cache folder where that cannot be written, and made anew when
    the tar has changed, or Pillow opens images with other suffixes.

    Raises:
        DataError: where the tar cannot be read, is none, or is compressed.
    """
    conditions = {"version": _VERSION, "stamp": stamp(location), "suffixes": sorted(image_suffixes())}
    places = _places(location)
    for place in places:
        loaded = load_table(place)
        if loaded is not None and all(loaded[1].get(name) == value for name, value in conditions.items()):
            table, facts = loaded
            return TarIndex(
                table=table, ignored=Counter(facts["ignored"]), hidden=facts["hidden"], problem=facts["problem"]
            )
    index = build_index(location)
    _save(index, places, conditions)
    return index


def build_index(location: str) -> TarIndex:
    """Read all headers of a tar, and its labels; see :func:`tar_index`."""
    import pyarrow as pa

    with open_binary(location) as file:
        head = file.read(6)
        if command := next((c for start, c in _COMPRESSED.items() if head.startswith(start)), None):
            raise DataError(
                f"{location} is compressed, and a compressed tar can only be read from its beginning. Unpack it once "
                f"with {command}: images inside hardly take less space for it."
            )
        shard = _Shard()
        try:
            problem = shard.read(file, location)
        except DataError:
            raise
        except Exception as error:  # a disk's OSError, or what a client of fsspec raises, such as for want of ranges
            raise DataError(f"Cannot read {location}: {error}") from error
    samples = [sample for sample in shard.samples.values() if sample.size >= 0]
    table = pa.table(
        {
            "name": pa.array([os.fsencode(sample.name) for sample in samples], pa.large_binary()),
            "offset": pa.array([sample.offset for sample in samples], pa.int64()),
            "size": pa.array([sample.size for sample in samples], pa.int64()),
            "label": pa.array([sample.label for sample in samples], pa.string()),
        }
    )
    return TarIndex(table=table, ignored=shard.ignored, hidden=shard.hidden, problem=problem)


@dataclass
class _Sample:
    """Members of one key: where its image is, once that was met, and the texts of possible labels."""

    name: str = ""
    offset: int = 0
    size: int = -1
    labels: dict[str, str] = field(default_factory=dict)

    @property
    def label(self) -> str | None:
        return next((self.labels[kind] for kind in _LABELS if kind in self.labels), None)


@dataclass
class _Shard:
    samples: dict[str, _Sample] = field(default_factory=dict)  # by key, in the order of their first members
    ignored: Counter[str] = field(default_factory=Counter)
    hidden: int = 0

    def read(self, file: BinaryIO, location: str) -> str | None:
        """Take in all whole members, and say what is wrong with the tar if something is."""
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
        if not cut and file.read(_BLOCK) == bytes(_BLOCK):
            return None
        return f"{location} breaks off or is damaged after byte {min(tar.offset, size)}: what comes after that is lost."

    def add(self, member: tarfile.TarInfo, file: BinaryIO) -> None:
        """Take in one member, as an image, as a label or as neither."""
        folder, _, name = member.name.rpartition("/")
        key, _, extension = name.partition(".")
        extension = extension.lower()
        suffix = os.path.splitext(name)[1].lower()
        if member.isdir():
            return
        if name.startswith("."):
            self.hidden += 1
        elif not member.isreg() or member.issparse():  # links name other files; sparse ones are not stored in one piece
            self.ignored["link, device or sparse file"] += 1
        elif suffix in image_suffixes():
            self.add_image(self.samples.setdefault(f"{folder}/{key}", _Sample()), member)
        elif (text := _label(member, extension, file)) is not None:
            self.samples.setdefault(f"{folder}/{key}", _Sample()).labels[extension] = text
        else:
            self.ignored[suffix] += 1

    def add_image(self, sample: _Sample, member: tarfile.TarInfo) -> None:
        """Of several images with one key (``1.jpg``, ``1.mask.png``) the first without a second dot is the sample's."""
        if sample.size >= 0 and sample.name != member.name:  # the same name was appended to replace the first
            better = _dots(member.name) < 2 <= _dots(sample.name)
            self.ignored[os.path.splitext(sample.name if better else member.name)[1].lower()] += 1
            if not better:
                return
        sample.name, sample.offset, sample.size = member.name, member.offset_data, member.size


def _dots(name: str) -> int:
    return name.rpartition("/")[2].count(".")


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The members up to the end, or to where the headers cannot be followed further."""
    while True:
        here = tar.offset
        try:
            member = tar.next()
        except tarfile.TarError:
            return
        # some versions of tarfile follow a negative size backwards, and round and round
        if member is None or member.size < 0 or tar.offset < here:
            return
        yield member
        tar.members.clear()  # type: ignore[attr-defined] # it would keep them all


def _label(member: tarfile.TarInfo, extension: str, file: BinaryIO) -> str | None:
    """The label that a member holds, as text; integers alone in a ``.txt``, which may also be a caption."""
    if extension not in _LABELS or member.size > _LONGEST[extension]:
        return None
    file.seek(member.offset_data)
    try:
        text = file.read(member.size).decode("utf-8").strip()
        value = json.loads(text)["label"] if extension == "json" else int(text) if extension == "txt" else text
        str(value).encode("utf-8")  # JSON can spell halves of surrogate pairs, which are no text
    except (ValueError, KeyError, TypeError, IndexError, RecursionError):
        return None
    return str(value) if isinstance(value, (int, str)) and not isinstance(value, bool) and value != "" else None


def _places(location: str) -> list[Path]:
    """Where the index may be kept, the best place first."""
    whole = location if is_remote(location) else os.path.abspath(location)
    key = hashlib.sha256(os.fsencode(whole)).hexdigest()[:32]
    cached = cache_folder() / "tar-index" / f"{key}.arrow"
    return [cached] if is_remote(location) else [Path(folder_of(location), f".{name_of(location)}.ssole-index"), cached]


def _save(index: TarIndex, places: list[Path], conditions: dict[str, object]) -> None:
    columns = {name: index.table.column(name) for name in index.table.column_names}
    facts = {"ignored": index.ignored, "hidden": index.hidden, "problem": index.problem}
    for place in places:
        try:
            if place is places[-1]:
                place.parent.mkdir(parents=True, exist_ok=True)
            save_table(place, columns, **conditions, **facts)
            return
        except OSError:
            continue  # not ours to write to; with nowhere left, the index is made again next time
