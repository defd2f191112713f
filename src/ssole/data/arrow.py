"""Paths and small tables as Arrow buffers and files."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ssole.files import write_atomically


class Paths:
    """Paths in one Arrow buffer, which takes a fraction of what as many Python strings do and loads in no time.

    Names that are no valid text survive, as in :func:`os.fsdecode`.
    """

    def __init__(self, paths: Iterable[str]) -> None:
        import pyarrow as pa

        self.array = pa.array(map(os.fsencode, paths), pa.large_binary())

    @classmethod
    def from_arrow(cls, array: Any) -> Paths:
        """Around a ``large_binary`` array that is there already."""
        paths = cls(())
        paths.array = array
        return paths

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, i: int) -> str:
        return os.fsdecode(self.array[i].as_py())


_FACTS = b"ssole"


def save_table(path: Path, columns: dict[str, Any], **facts: Any) -> None:
    """Write Arrow arrays of one length, compressed, and facts that JSON can hold. Raises `OSError`."""
    import pyarrow as pa

    table = pa.table(columns).replace_schema_metadata({_FACTS: json.dumps(facts)})
    options = pa.ipc.IpcWriteOptions(compression="zstd")

    def write(temporary: Path) -> None:
        with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, table.schema, options=options) as writer:
            writer.write_table(table)

    write_atomically(path, write)


def load_table(path: Path) -> tuple[Any, dict[str, Any]] | None:
    """The Arrow table and the facts, or None where there is no such file or it is damaged."""
    import pyarrow as pa

    try:
        with pa.OSFile(str(path), "rb") as file, pa.ipc.open_file(file) as reader:
            table = reader.read_all()
        table.validate(full=True)  # nothing below checks offsets within Arrow's buffers
        return table, json.loads(table.schema.metadata[_FACTS])
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError):
        return None
