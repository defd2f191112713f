"""Search by index folder or run folder."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any

import torch

from ssole.config import ConfigError
from ssole.data.base import Spec
from ssole.data.describe import why_not_reopened
from ssole.evaluation.evaluate import model_and_preprocessing
from ssole.evaluation.parts import backbone_digest
from ssole.models.load import weights_path
from ssole.search.build import build_index, index_path
from ssole.search.index import DESCRIPTION, Index
from ssole.search.matches import Matches
from ssole.training.run import Run


def search(
    index_or_run: Index | Run | str | PathLike[str],
    query: Any,
    k: int = 20,
    *,
    device: torch.device | str = "auto",
    progress: bool = True,
) -> Matches:
    """The k images most similar to one, best first: :meth:`Index.search` by the folder of an index or of a run.

        ssole.search("runs/mine", "one.jpg", k=20).ids

    Args:
        index_or_run: an index, or its folder; or a run, whose training images are indexed in its folder the first time.
        query: path of an image file, the id of an image in the index, or an image.
        k: number of images.
        device, progress: as for :func:`ssole.embed`.

    Raises:
        ConfigError: neither an index nor a finished run, an index of another model, or k out of range.
        DataError: a damaged index, or a query that cannot be read.
    """
    index = (
        index_or_run if isinstance(index_or_run, Index) else open_index(index_or_run, device=device, progress=progress)
    )
    return index.search(query, k, device=device)


def open_index(
    where: Run | str | PathLike[str],
    *,
    data: Spec | None = None,
    device: torch.device | str = "auto",
    progress: bool = True,
) -> Index:
    """Index in a folder; of a run folder its own index, which is made if there is none.

    Args:
        where: folder of an index or a run, or a Run.
        data: images of a run's index, if it has to be made; by default those that it was trained on.
        device, progress: as for :func:`ssole.embed`.

    Raises:
        ConfigError: neither an index nor a finished run, or the index in a run folder is of another model.
        DataError: as :class:`Index`, or the images cannot be opened.
    """
    path = where.path if isinstance(where, Run) else Path(where)
    if (path / DESCRIPTION).is_file():
        return Index(path)
    if not path.is_dir():
        raise ConfigError(f"there is no folder {path}: give an index that ssole index wrote, or a run folder")
    if not (path / "config.yaml").is_file():
        raise ConfigError(
            f"{path} is neither an index nor a run folder: make an index with ssole index RUN --data DATA"
        )
    own = index_path(weights_path(path))
    if (own / DESCRIPTION).is_file():
        index = Index(own)
        index.require_model(backbone_digest(*model_and_preprocessing(path)), weights_path(path))
        return index
    if data is None:
        data = Run(path).config.data
        if (reason := why_not_reopened(data)) is not None:
            raise ConfigError(f"{path} was trained on {reason}: make an index with ssole index, or pass --data")
    return build_index(path, data, own, device=device, progress=progress)
