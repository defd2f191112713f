"""`embed`: features of images with their ids and labels, and the files that hold them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ssole.data.base import Spec
from ssole.data.sources import open_source
from ssole.data.store import ImageStore
from ssole.errors import valid_text
from ssole.evaluation.features import evaluation_device, extract
from ssole.evaluation.models import ModelOrRun, model_and_preprocessing, most_unreadable
from ssole.files import write_atomically
from ssole.runtime import Precision


def embed(
    model_or_run: ModelOrRun,
    data: Spec,
    *,
    device: torch.device | str = "auto",
    precision: Precision = "auto",
    progress: bool = True,
    image_size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Embeddings:
    """Frozen features of every readable image of ``data`` (its train split), with their ids and labels.

    Images that cannot be read are left out, with a warning that says how many and names the first.

    Args:
        model_or_run, device, precision, progress, image_size, mean, std: as for :func:`ssole.evaluate`.
        data: as for pretraining.

    Raises:
        DataError: data that cannot be opened, or too many unreadable images.
        ValueError: unknown preprocessing, or features that are not finite.
    """
    device = evaluation_device(device)
    model, preprocessing = model_and_preprocessing(model_or_run, image_size=image_size, mean=mean, std=std)
    most = most_unreadable([model_or_run])
    store = preprocessing.open_store(open_source(data), progress=progress, max_unreadable=most)
    features = extract(model, store, preprocessing, device=device, precision=precision, progress=progress)
    if store.unreadable:
        _, first, reason = store.unreadable[0]
        warnings.warn(
            f"{len(store.unreadable)} of {len(store)} images cannot be read and are left out: {first} ({reason}), ...",
            stacklevel=2,
        )
    return readable_embeddings(features, store)


@dataclass(frozen=True, kw_only=True, repr=False)
class Embeddings:
    """Frozen features of images, one row for each, with their ids and labels."""

    array: NDArray[np.float32]
    """(N, F)."""
    ids: list[str]
    """N names, stable between runs: the path of each image below the data's root, or ``file:row``."""
    labels: NDArray[np.int64] | None = None
    """(N,), -1 where unknown; or None."""
    classes: list[str] | None = None
    """Names of the labels 0, 1, ..., where known."""

    def __post_init__(self) -> None:
        if self.array.ndim != 2 or len(self.ids) != len(self.array):
            raise ValueError(f"an array of shape {self.array.shape} with {len(self.ids)} ids; (N, F) and N are needed")
        if self.labels is not None and self.labels.shape != (len(self.array),):
            raise ValueError(f"labels have shape {self.labels.shape}; ({len(self.array)},) is needed")

    def __repr__(self) -> str:
        images, features = self.array.shape
        return f"{type(self).__name__}({images:,} images, {features:,} features)"

    def __len__(self) -> int:
        return len(self.array)

    def save(self, path: str | PathLike[str]) -> Path:
        """Write to ``.npz`` (keys array, ids, labels, classes) or ``.parquet`` (columns id, embedding, label, class).

        The file appears whole or not at all. Neither form needs pickle to be read.

        Raises:
            ValueError: the name has another suffix.
        """
        path = Path(path)
        require_embeddings_name(path)
        write_atomically(path, self._write_npz if path.suffix == ".npz" else self._write_parquet)
        return path

    def _write_npz(self, path: Path) -> None:
        columns: dict[str, Any] = {"array": self.array, "ids": np.array(self.ids, dtype=np.str_)}
        if self.labels is not None:
            columns["labels"] = self.labels
        if self.classes is not None:
            columns["classes"] = np.array(self.classes, dtype=np.str_)
        with path.open("wb") as file:  # given a name, numpy would append .npz to it
            np.savez(file, **columns)  # numbers and texts alone: nothing is pickled

    def _write_parquet(self, path: Path) -> None:
        import pyarrow as pa
        from pyarrow import parquet

        flat = pa.array(np.ascontiguousarray(self.array).ravel())
        ids = pa.array([valid_text(name) for name in self.ids], type=pa.string())
        columns = {"id": ids, "embedding": pa.FixedSizeListArray.from_arrays(flat, self.array.shape[1])}
        if self.labels is not None:
            columns["label"] = pa.array(self.labels)
            if self.classes is not None:
                known = [valid_text(name) for name in self.classes]
                names = np.array([*known, None], dtype=object)  # -1, an unknown label, has no name
                columns["class"] = pa.array(names[self.labels], type=pa.string())
        parquet.write_table(pa.table(columns), path)


def require_embeddings_name(path: Path) -> None:
    """Raise a `ValueError` unless embeddings can be written to a file of this name."""
    if path.suffix not in (".npz", ".parquet"):
        raise ValueError(f"cannot write embeddings to {path.name!r}: end the name in .npz or .parquet")


def readable_embeddings(features: torch.Tensor, store: ImageStore, first: int = 0) -> Embeddings:
    """Embeddings of images of a store, from number ``first`` on, by their features (B, F), without unreadable ones."""
    readable = first + np.flatnonzero(store.readable[first : first + len(features)])
    return Embeddings(
        array=features.numpy()[readable - first],
        ids=[store.source.id(i) for i in readable.tolist()],
        labels=None if store.source.labels is None else store.source.labels[readable],
        classes=store.source.classes,
    )
