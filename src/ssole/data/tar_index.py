"""Where the images of a tar lie, found out once and kept."""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from ssole.data.host import cache_folder
from ssole.data.listing import image_suffixes
from ssole.data.remote import is_remote
from ssole.data.storage import folder_of, name_of, open_binary, stamp
from ssole.data.tables import load_table, save_table
from ssole.errors import DataError

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
