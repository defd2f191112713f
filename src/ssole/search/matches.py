"""Matches: the images that a search found, each with a similarity."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ssole.config import ConfigError
from ssole.data.storage import data_errors
from ssole.errors import valid_text
from ssole.files import write_text_atomically


def require_new(path: Path) -> None:
    """Raise a `ConfigError` if a list is there already, or its folder is not."""
    if path.exists():
        raise ConfigError(f"{path} exists, and labels that were filled in would be lost: choose another name (--out)")
    if not path.absolute().parent.is_dir():
        raise ConfigError(
            f"there is no folder {path.parent} to write {path.name} to: make it, or choose another (--out)"
        )


def saved_ids(path: str | PathLike[str]) -> list[str]:
    """Ids in a list that :meth:`Matches.save` wrote; `DataError` if it cannot be read."""
    with data_errors(f"Cannot read the column path of {path}"), open(path, newline="", encoding="utf-8-sig") as file:
        return [row["path"] for row in csv.DictReader(file)]


@dataclass(frozen=True, kw_only=True)
class Matches:
    """Images of an index, in the order that a search found them."""

    rows: NDArray[np.int64]
    """(K,) their rows in the index."""
    ids: list[str]
    """Their names: the path of each image below the data's root, or ``file:row``."""
    similarity: NDArray[np.float64]
    """(K,) cosine similarity; each search says to which image. NaN where there is nothing to compare with."""
    labels: list[str]
    """Their classes or labels; an empty text where unknown."""

    def __len__(self) -> int:
        return len(self.rows)

    def save(self, path: str | PathLike[str]) -> Path:
        """Write a table ``path,label,similarity`` (CSV), which can be completed by hand and opened as data.

        A list opens the images below the folder that it lies in: write it to the folder of the images.

        Raises:
            ConfigError: the file exists. It is not overwritten, because labels that were filled in would be lost.
        """
        require_new(Path(path))
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["path", "label", "similarity"])
        for name, label, value in zip(self.ids, self.labels, self.similarity.tolist(), strict=True):
            writer.writerow([name, label, "" if np.isnan(value) else f"{value:.6f}"])
        write_text_atomically(Path(path), valid_text(text.getvalue()))
        return Path(path)
