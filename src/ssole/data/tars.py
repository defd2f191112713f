"""Images in tar shards, as WebDataset lays them out."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from ssole.data.fingerprint import files_digest
from ssole.data.folder import kinds
from ssole.data.labels import number_texts
from ssole.data.remote import is_remote
from ssole.data.storage import CONNECTIONS, common_folder, name_of, place_of, read_bytes, relative_to, versions_digest
from ssole.data.tar_index import tar_index
from ssole.errors import DataError


class TarSource:
    """The images of tar files in the layout of WebDataset; a :class:`~ssole.data.sources.Source`.

    Members whose names agree up to the first dot belong to one sample: ``a/1.jpg``, ``a/1.cls``. Its image is known by
    the suffix. Its label is an integer or name in ``.cls``, else ``"label"`` in ``.json``, else an integer in ``.txt``;
    samples without one have −1. Names of members are only ever read as text: nothing is unpacked.

    Images are read at their offsets, in any order, from an index that is made once for each shard (see
    :func:`~ssole.data.tar_index.tar_index`). Compressed tars do not allow that. Of a tar that breaks off the whole
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
