"""Functions that make, open and search an index, in a folder of its own or in that of a run."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from ssole.config import ConfigError
from ssole.data.base import Spec
from ssole.data.describe import canonical, describe, images_of_run
from ssole.data.sources import open_source
from ssole.errors import quoted
from ssole.evaluation.embed_to_file import Parts, backbone_digest, embed_parts
from ssole.evaluation.models import (
    ModelOrRun,
    OnnxModel,
    is_run,
    model_and_preprocessing,
    most_unreadable,
    name_of,
    open_model,
)
from ssole.evaluation.preprocessing import Preprocessing
from ssole.files import (
    LEFTOVER,
    folder_atomically,
    locked,
    require_new_folder,
    require_writable,
    write_json_atomically,
)
from ssole.models.load import folder_beside, weights_path
from ssole.runtime import Precision
from ssole.search.cells import CELLS_ABOVE, faiss_installed, make_cells
from ssole.search.index import BACKBONE, CELLS, DESCRIPTION, FEATURES, FORMAT, IMAGES, Index
from ssole.search.matches import Matches
from ssole.search.rows import unit_rows
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
    if not isinstance(index_or_run, Index):
        index_or_run = open_index(index_or_run, device=device, progress=progress)
    return index_or_run.search(query, k, device=device)


def open_index(
    where: Run | str | PathLike[str],
    *,
    data: Spec | None = None,
    device: torch.device | str = "auto",
    progress: bool = True,
) -> Index:
    """Index in a folder; of a run folder its own index, which is made if there is none.

    ``data`` are the images of a run's index, if it has to be made; by default those that it was trained on.
    ``device`` and ``progress`` are as for :func:`ssole.embed`.

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
    own = folder_beside(weights_path(path), "index")
    if (own / DESCRIPTION).is_file():
        index = Index(own)
        index.require_model(backbone_digest(*model_and_preprocessing(path)), weights_path(path))
        return index
    if data is None:
        data = images_of_run(Run(path).config.data, path)
    require_writable(own, f"make the index elsewhere (ssole index {quoted(path)} --out FOLDER), and name that FOLDER")
    return build_index(path, data, own, device=device, progress=progress)


def build_index(
    model_or_run: ModelOrRun,
    data: Spec,
    out: str | PathLike[str] | None = None,
    *,
    half: bool = False,
    cells: Literal["auto", "always", "never"] = "auto",
    device: torch.device | str = "auto",
    precision: Precision = "auto",
    progress: bool = True,
) -> Index:
    """Write an index of the readable images of ``data``, to search among them. It is called :func:`ssole.index`.

        index = ssole.index("runs/mine", "photos/", "photos-index")

    The work can be interrupted: the same call goes on from there. Memory grows with the images' names only.

    Args:
        model_or_run: a run, or anything that :func:`ssole.evaluation.models.open_model` opens (``timm:resnet18``).
        data: images, as for pretraining.
        out: folder to write; by default `index` in the run folder. It must not exist or be empty.
        half: store features in float16, which halves the disk space and changes cosine similarities by up to 0.001.
        cells: divide the images into cells (:class:`Index`); "auto": more than a million, where faiss is installed.
        device, precision, progress: as for :func:`ssole.embed`.

    Raises:
        ConfigError: the folder is not empty, another model than a run has no folder, or faiss is missing for cells.
        DataError: data that cannot be opened, or too many unreadable images.
        ValueError: unknown preprocessing, or features that are not finite.
    """
    data = canonical(data)
    weights = weights_path(model_or_run) if is_run(model_or_run) else None
    folder = _folder(out, weights, cells)
    model = open_model(model_or_run)
    if isinstance(model, OnnxModel):
        raise ConfigError(f"an index cannot know {model_or_run} again: give the run that it was exported from")
    preprocessing = Preprocessing.from_model(model)
    description: dict[str, Any] = {"model": name_of(model_or_run), "backbone": backbone_digest(model, preprocessing)}
    description |= {"channels": preprocessing.channels, "data": describe(data)}
    data, most = open_source(data), most_unreadable([model_or_run])
    with _work_folder(folder) as work:
        parts = embed_parts(
            model, preprocessing, data, work, max_unreadable=most, device=device, precision=precision, progress=progress
        )
        with folder_atomically(folder) as new:
            _write(parts, new, "float16" if half else "float32", description, weights)
            if cells == "always" or (cells == "auto" and parts.images > CELLS_ABOVE and faiss_installed()):
                make_cells(np.load(new / FEATURES, mmap_mode="c"), progress=progress).save(new / CELLS)
        parts.remove()
    return Index(folder)


def _folder(out: str | PathLike[str] | None, weights: Path | None, cells: str) -> Path:
    """Folder of a new index; a ConfigError if it is not given, not new or empty, or if faiss is missing for cells."""
    if cells == "always" and not faiss_installed():
        raise ConfigError("cells are made by faiss: pip install 'ssole[search]'")
    if out is not None:
        folder = Path(out)
    elif weights is not None:
        folder = folder_beside(weights, "index")
    else:
        raise ConfigError(
            "an index made with another model than a run needs a folder to be written to: pass out (--out)"
        )
    require_new_folder(folder)
    return folder


@contextmanager
def _work_folder(folder: Path) -> Iterator[Path]:
    """Context of a folder for the features of an index until they are complete.

    It lies beside the folder of the index, or in it if that exists. A ConfigError if another process is writing this
    index.
    """
    target = Path(os.path.realpath(folder))
    work, lock_path = target.with_name(f"{target.name}.parts"), target.with_name(f".{target.name}.lock")
    if target.exists():  # names of leftovers, so that the folder still counts as empty
        work, lock_path = target / f".parts{LEFTOVER}", target / f".parts-lock{LEFTOVER}"
    work.parent.mkdir(parents=True, exist_ok=True)
    with locked(lock_path, f"another process is writing the index {folder}: wait for it", remove=True):
        require_new_folder(folder)  # another process may have written it meanwhile
        yield work


def _write(parts: Parts, folder: Path, dtype: str, description: dict[str, Any], weights: Path | None) -> None:
    """Write the features, scaled to unit length, the table of images, the description, and the weights of a run."""
    from pyarrow import parquet

    descr, shape = np.lib.format.dtype_to_descr(np.dtype(dtype)), (parts.images, parts.features)
    schema = parquet.read_schema(parts.files[0])
    schema = schema.remove(schema.get_field_index("embedding"))
    # not through a memory map, where a full disk would kill the process
    with open(folder / FEATURES, "wb") as file, parquet.ParquetWriter(folder / IMAGES, schema) as writer:
        np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
        for table, rows in parts.read():
            writer.write_table(table.drop_columns(["embedding"]))
            file.write(np.asarray(unit_rows(torch.from_numpy(rows.copy())), dtype=dtype).tobytes())
    if weights is not None:
        shutil.copyfile(weights, folder / BACKBONE)
    whole = {"format": FORMAT, "images": parts.images, "features": parts.features, **description}
    write_json_atomically(folder / DESCRIPTION, whole)
