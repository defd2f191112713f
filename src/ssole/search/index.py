"""Index: a folder with the features of many images, and the searches among them.

INDEX/
  index.json             number of images and features, hash of the backbone, where the images are
  features.npy           (N, F) rows of unit length, float32 or float16, mapped when they are searched
  images.parquet         id, and label and class where known, of each row
  backbone.safetensors   the backbone, for images to look for; only if the index was made with a run
  cells.safetensors      cells of similar rows, for searches among very many images; only if there are
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ssole.config import ConfigError
from ssole.data.storage import data_errors
from ssole.errors import DataError, valid_text
from ssole.evaluation.embed_to_file import backbone_digest
from ssole.evaluation.models import model_and_preprocessing, name_of
from ssole.evaluation.preprocessing import Preprocessing
from ssole.files import read_json
from ssole.search.cells import Cells, nearest_in_cells
from ssole.search.matches import Matches
from ssole.search.query import image_features
from ssole.search.rows import NEAR_DUPLICATE, Rows, k_center, near_duplicates, nearest_rows, outliers, unit_rows

FORMAT = 1
"""Number of the folder's format."""
DESCRIPTION, FEATURES, IMAGES, BACKBONE = "index.json", "features.npy", "images.parquet", "backbone.safetensors"
CELLS = "cells.safetensors"
DTYPES = ("float32", "float16")


class Index:
    """Features of many images, which can be searched. Of equal images, the first comes first.

    Searches are exact. With cells, which an index of more than a million images has if faiss was installed, they look
    into the cells nearest to the query, unless `exact` is set.

        index = ssole.Index("photos-index")
        index.search("one.jpg", 20).ids

    Args:
        path: folder that :func:`ssole.index` or `ssole index` wrote.

    Attributes:
        path: the folder.
        features: (N, F) rows of unit length, float32 or float16, mapped from the file.
        cells: cells of similar images, or None.
        data: where the images are, as a config names them.
        channels: of images kept at full depth, or None for red, green and blue.

    Raises:
        ConfigError: the folder is no index.
        DataError: the index is damaged, or of another version.
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        self.path = Path(path)
        if not (self.path / DESCRIPTION).is_file():
            raise ConfigError(f"{self.path} is not an index: make one with ssole index RUN --data DATA --out INDEX")
        self._description = read_json(self.path / DESCRIPTION)
        if (found := self._description.get("format")) != FORMAT:
            raise DataError(
                f"{self.path} has format {found!r}, and this version of ssole reads {FORMAT}: make the index anew with "
                "ssole index"
            )
        self.features = self._open_features()
        self._images = self._open_images()
        self.cells: Cells | None = None
        if (self.path / CELLS).is_file():
            with data_errors(self._damage(f"{CELLS} cannot be read")):
                self.cells = Cells.load(self.path / CELLS, self.features.shape)
        self.data: Any = self._description.get("data")
        self.channels: int | None = self._description.get("channels")

    def __repr__(self) -> str:
        return f"Index({str(self.path)!r}: {len(self):,} images, {self.features.shape[1]:,} features)"

    def __len__(self) -> int:
        return len(self.features)

    @property
    def digest(self) -> str:
        """Hash of the backbone that made the features, and of its preprocessing."""
        return str(self._description.get("backbone"))

    @cached_property
    def ids(self) -> list[str]:
        """Names of all images."""
        return self._ids_of(np.arange(len(self)))

    @cached_property
    def labels(self) -> NDArray[np.int64] | None:
        """(N,) labels, -1 where unknown; None if the data had none."""
        if "label" not in self._images.column_names:
            return None
        return np.asarray(self._images["label"].to_numpy(), dtype=np.int64)

    def search(
        self,
        query: Any,
        k: int = 20,
        *,
        model: nn.Module | str | None = None,
        device: torch.device | str = "auto",
        exact: bool = False,
    ) -> Matches:
        """The k images that are most similar to one, best first, with their cosine similarity to it.

        Args:
            query: path of an image file; the id of an image in this index, which is then left out of the result; or an
                image: Pillow's, or uint8 or uint16 of shape (H, W) or (H, W, C).
            k: number of images.
            model: the model that the index was made with, if that was no run: a module, or a text such as
                ``timm:resnet18``.
            device: device to compute the query's features on.
            exact: compare the query with all images, also where there are cells.

        Raises:
            DataError: the query cannot be read, or is neither a file nor in the index.
            ConfigError: k is out of range, or the model is not the one that made the index.
        """
        if isinstance(query, (str, PathLike)) and not os.path.isfile(query):  # False also for names that are too long
            try:
                rows = self.rows_of([str(query)])
            except DataError as error:
                raise DataError(f"there is no file {str(query)!r}, and {error}") from None
            self._check_k(k, len(self) - 1)
            similarity, index = self._nearest(self.features[rows], k, exact, leave_out=rows)
        else:
            self._check_k(k, len(self))
            backbone, preprocessing = self.model(model)
            query_F = unit_rows(image_features(query, backbone, preprocessing, device=device))
            similarity, index = self._nearest(query_F, k, exact)
        return self._matches(index[0], similarity[0])

    def nearest(
        self, features: NDArray[np.floating], k: int = 20, *, exact: bool = False
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Cosine similarities (Q, k) and rows (Q, k) of the images nearest to features (Q, F), best first.

        `exact` is as for :meth:`search`.

        Raises:
            ConfigError: k is out of range, or the features have another width.
            DataError: the features hold NaN or infinity.
        """
        if features.ndim != 2 or features.shape[1] != self.features.shape[1]:
            raise ConfigError(
                f"features of shape {features.shape} were given, and {self.path} holds features of width "
                f"{self.features.shape[1]}: compute both with the same model"
            )
        self._check_k(k, len(self))
        return self._nearest(unit_rows(torch.from_numpy(np.array(features, dtype=np.float32))), k, exact)

    def _nearest(
        self, queries: Rows, k: int, exact: bool, *, leave_out: NDArray[np.int64] | None = None
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        if exact or self.cells is None:
            return nearest_rows(self.features, queries, k, leave_out=leave_out)
        return nearest_in_cells(self.features, self.cells, queries, k, leave_out=leave_out)

    def duplicates(self, least: float = NEAR_DUPLICATE, *, progress: bool = True) -> list[Matches]:
        """Groups of near duplicates: an image, and those whose cosine similarity to it is at least `least`.

        No two of the images that remain without the copies are that similar. The time grows with the square of the
        number of images.
        """
        if not 0 < least <= 1:
            raise ConfigError(f"the least similarity of duplicates lies in (0, 1], got {least}")
        return [self._matches(*group) for group in near_duplicates(self.features, least, progress=progress)]

    def outliers(self, count: int = 20, *, progress: bool = True) -> Matches:
        """Images that are least similar to their ten nearest others, with the mean of these similarities, lowest first.

        The time grows with the square of the number of images.
        """
        self._check_k(count, len(self), what="count")
        return self._matches(*outliers(self.features, count, progress=progress))

    def select(self, count: int, *, given: Sequence[str] = (), progress: bool = True) -> tuple[Matches, float]:
        """A few images that represent all, to be labelled first: greedy k-center.

        Each is the least similar to those chosen before it, so the first n of them are the choice of n images.

        Args:
            count: number of images to choose.
            given: ids of images that need not be chosen, such as those labelled already.
            progress: show a bar when it takes more than two seconds.

        Returns:
            The images in the order chosen, with the similarity of each to the nearest of those before it; and the
            cosine similarity of the worst represented image to its nearest chosen one.
        """
        rows = np.unique(self.rows_of(given))
        self._check_k(count, len(self) - len(rows), what="count")
        chosen, similarity, worst = k_center(self.features, count, given=rows, progress=progress)
        return self._matches(chosen, similarity), worst

    def rows_of(self, ids: Sequence[str]) -> NDArray[np.int64]:
        """Rows of images by id; `DataError` if one is not in the index."""
        import pyarrow as pa
        import pyarrow.compute as pc

        wanted = pa.array([valid_text(name) for name in ids], type=pa.string())
        rows = pc.index_in(wanted, value_set=self._images["id"].combine_chunks())
        if rows.null_count:
            missing = ids[rows.is_null().to_pylist().index(True)]
            example = self._ids_of(np.array([0]))[0]
            raise DataError(f"{self.path} has no image of the id {missing!r}; its ids are like {example!r}")
        return np.asarray(rows.to_numpy(zero_copy_only=False), dtype=np.int64)

    def model(self, given: nn.Module | str | None = None) -> tuple[nn.Module, Preprocessing]:
        """The backbone that made the features, and its preprocessing.

        Args:
            given: the model, if the index was not made with a run.

        Raises:
            ConfigError: the index has no backbone and no model is given, or it is another than the one that made it.
        """
        weights = self.path / BACKBONE
        if given is None and not weights.is_file():
            name = self._description.get("model")
            raise ConfigError(f"{self.path} was made with {name}, which it does not hold: pass it, model=... (--model)")
        backbone, preprocessing = model_and_preprocessing(weights if given is None else given)
        self.require_model(backbone_digest(backbone, preprocessing), name_of(given) if given is not None else weights)
        return backbone, preprocessing

    def require_model(self, digest: str, what: object) -> None:
        """Raise a `ConfigError` unless the index was made with the backbone of this hash."""
        if digest != self.digest:
            raise ConfigError(
                f"{what} is not the model that made the index {self.path}, and features of two models cannot be "
                "compared: make the index anew with ssole index"
            )

    def _check_k(self, k: int, most: int, *, what: str = "k") -> None:
        if not 1 <= k <= most:
            raise ConfigError(
                f"{what} is {k}, and {self.path} has {most:,} images to choose from: it must be 1 to {most}"
            )

    def _matches(self, rows: NDArray[np.int64], similarity: NDArray[np.float64]) -> Matches:
        table = self._images
        column = next((name for name in ("class", "label") if name in table.column_names), None)
        found = [""] * len(rows)
        if column is not None:
            values = table[column].take(rows).to_pylist()
            found = ["" if value is None or (column == "label" and value < 0) else str(value) for value in values]
        return Matches(rows=rows, ids=self._ids_of(rows), similarity=similarity, labels=found)

    def _ids_of(self, rows: NDArray[np.int64]) -> list[str]:
        return [str(name) for name in self._images["id"].take(rows).to_pylist()]

    def _open_features(self) -> Rows:
        with data_errors(self._damage(f"{FEATURES} cannot be read")), warnings.catch_warnings():
            warnings.simplefilter("error")  # NumPy warns of a header that makes no sense
            # copy-on-write, because torch warns of arrays that cannot be written to
            rows: Rows = np.load(self.path / FEATURES, mmap_mode="c", allow_pickle=False)
            shape, wanted = rows.shape, tuple(self._description.get(name) for name in ("images", "features"))
        if shape != wanted or str(rows.dtype) not in DTYPES or not rows.size:
            raise DataError(self._damage(f"{FEATURES} holds {rows.dtype} {shape} instead of {wanted}"))
        return rows

    def _open_images(self) -> Any:
        import pyarrow as pa
        from pyarrow import parquet

        with data_errors(self._damage(f"{IMAGES} cannot be read")):
            table = parquet.read_table(self.path / IMAGES)
            table.validate(full=True)
        kinds = {"id": pa.string(), "label": pa.int64(), "class": pa.string()}
        right = all(kinds.get(field.name) == field.type for field in table.schema) and "id" in table.column_names
        if not right or len(table) != len(self.features) or table["id"].null_count:
            raise DataError(self._damage(f"{IMAGES} holds {len(table)} rows of {table.column_names}"))
        return table

    def _damage(self, what: str) -> str:
        return f"the index {self.path} is damaged, make it anew with ssole index: {what}"
