"""Very many paths."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any


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
