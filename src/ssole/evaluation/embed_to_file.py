"""Features of many images, computed in parts that survive an interruption, and the file made of them.

A part is a parquet file with the features of up to 1,024 images. Parts lie in a folder of their own until the last one
is there, so whoever is interrupted loses the part in work and no more. The memory needed does not grow with the number
of images, except for their ids.
"""

from __future__ import annotations

import hashlib
import shutil
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ssole import distributed
from ssole.config import ConfigError, PretrainConfig
from ssole.data.base import Source, Spec, content_digests
from ssole.data.sources import open_source
from ssole.errors import DataError, valid_text
from ssole.evaluation.checks import check_features
from ssole.evaluation.datasets import Subset
from ssole.evaluation.embed import Embeddings, readable_embeddings, require_embeddings_name
from ssole.evaluation.features import evaluation_device, for_each_batch
from ssole.evaluation.models import ModelOrRun, model_and_preprocessing, most_unreadable
from ssole.evaluation.preprocessing import Preprocessing
from ssole.files import locked, read_json, remove_leftovers, write_atomically, write_json_atomically
from ssole.models.weights_file import digest_of
from ssole.runtime import Precision, resolve_precision

PART = 1024
"""Images of a part; a multiple of the batch size, so that batches are the same with and without an interruption."""
_BATCH = 256


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Features of the readable images of a source, in parquet files, in order."""

    folder: Path
    files: list[Path]
    images: int
    """Number of readable images."""
    features: int
    """Number of features F."""

    def read(self) -> Iterator[tuple[Any, NDArray[np.float32]]]:
        """Arrow table of each part, with the columns that :meth:`Embeddings.save` writes, and its features (n, F)."""
        from pyarrow import parquet

        for file in self.files:
            table = parquet.read_table(file)
            yield table, table["embedding"].combine_chunks().flatten().to_numpy().reshape(-1, self.features)

    def remove(self) -> None:
        """Remove the parts and their folder."""
        shutil.rmtree(self.folder)


def embed_to_file(
    model_or_run: ModelOrRun,
    data: Spec,
    out: str | PathLike[str],
    *,
    device: torch.device | str = "auto",
    precision: Precision = "auto",
    progress: bool = True,
) -> Parts:
    """Write the frozen features of every readable image of ``data`` to a file, as :meth:`Embeddings.save` does.

    Unlike :func:`ssole.embed`, the work can be interrupted: its parts are kept in the folder ``OUT.parts``, and the
    same call goes on from there. The file is then equal to that of a call without interruption. Meanwhile, no other
    process can write it. With ``.parquet``, memory does not grow with the number of images; with ``.npz``, it does in
    the end.

    Args:
        model_or_run, data, device, precision, progress: as for :func:`ssole.embed`.
        out: file to write, ``.npz`` or ``.parquet``. An older file is replaced when the new one is complete.

    Returns:
        What the file was made of. The parts themselves are removed.

    Raises:
        ConfigError: `out` is a folder, or another process is writing it.
        DataError: data that cannot be opened, too many unreadable images, or parts of another call in the folder.
        ValueError: another suffix, unknown preprocessing, or features that are not finite.
        KeyboardInterrupt: Ctrl-C; the message says how much was done.
    """
    out = Path(out)
    require_embeddings_name(out)
    if out.is_dir():
        raise ConfigError(f"{out} is a folder: embeddings are one file, so choose another name (--out)")
    model, preprocessing = model_and_preprocessing(model_or_run)
    source = open_source(data)
    with ExitStack() as stack:
        distributed.on_rank_0(lambda: stack.enter_context(_only_writer(out)))
        parts = embed_parts(
            model,
            preprocessing,
            source,
            out.with_name(out.name + ".parts"),
            max_unreadable=most_unreadable([model_or_run]),
            device=device,
            precision=precision,
            progress=progress,
        )
        distributed.on_rank_0(lambda: _join(parts, source, out))
    return parts


@contextmanager
def _only_writer(out: Path) -> Iterator[None]:
    """Context in which no other process writes this file or its parts; a ConfigError if one does."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with locked(out.with_name(f".{out.name}.lock"), f"another process is writing {out}: wait for it", remove=True):
        yield


def _join(parts: Parts, source: Source, out: Path) -> None:
    """Write the file that parts make, and remove them."""
    if out.suffix == ".parquet":
        write_atomically(out, lambda path: _write_joined(parts, path))
    else:
        _in_memory(parts, source).save(out)
    parts.remove()


def embed_parts(
    model: nn.Module,
    preprocessing: Preprocessing,
    source: Source,
    folder: Path,
    *,
    max_unreadable: float = PretrainConfig.max_unreadable,
    device: torch.device | str = "auto",
    precision: Precision = "auto",
    progress: bool = True,
) -> Parts:
    """Compute the features of a source in parts, those that are missing in the folder. Raises as `embed_to_file`.

    Many processes share the features, and the first one writes them.
    """
    device = evaluation_device(device)
    files = [folder / f"{start:010}.parquet" for start in range(0, len(source), PART)]

    def begin() -> int:
        _open_folder(folder, _depends_on(model, preprocessing, source, device, precision))
        remove_leftovers(folder)
        return next((number for number, file in enumerate(files) if not file.exists()), len(files))

    done = distributed.on_rank_0(begin)
    if done < len(files):
        positions = torch.arange(done * PART, len(source))
        for_each = partial(for_each_batch, batch_size=_BATCH, device=device, precision=precision, progress=progress)
        store = preprocessing.open_store(source, memory_limit=0, max_unreadable=max_unreadable, progress=progress)
        with store:
            writer = _PartWriter(Subset(store=store, positions=positions, labels=positions), files[done:])
            try:
                for_each(model, writer.images, preprocessing, writer.add)
            except KeyboardInterrupt:
                kept = min((done + writer.written) * PART, len(source))
                raise KeyboardInterrupt(
                    f"stopped; the features of {kept:,} of {len(source):,} images are kept in {folder}, and the same "
                    "command goes on from there"
                ) from None
    images, features = distributed.on_rank_0(lambda: _counted(files, source))
    return Parts(folder=folder, files=files, images=images, features=features)


class _PartWriter:
    """Receiver of batches of features, which writes each part when it is complete."""

    def __init__(self, images: Subset, files: list[Path]) -> None:
        self.images, self._files = images, files
        self._rows: list[Tensor] = []
        self.written = 0

    def add(self, start: int, rows: Tensor) -> None:
        self._rows.append(rows.cpu())
        end = start + len(rows)
        if end % PART and end < len(self.images):
            return
        features = torch.cat(self._rows)
        check_features(features, "features")
        if distributed.rank() == 0:
            first = int(self.images.positions[end - len(features)])
            readable_embeddings(features, self.images.store, first).save(self._files[self.written])
        self.written += 1
        self._rows = []


def backbone_digest(model: nn.Module, preprocessing: Preprocessing) -> str:
    """SHA-256 of a model's weights, with their names, and of its preprocessing: equal features need an equal digest."""
    return digest_of(model.state_dict(), repr(preprocessing))


def _depends_on(
    model: nn.Module, preprocessing: Preprocessing, source: Source, device: torch.device, precision: Precision
) -> dict[str, Any]:
    """All that the features depend on."""
    # ids, the files' sizes and times, and a few images, since not every source has files
    words = [source.fingerprint() or source.ids_fingerprint, *content_digests(source, 8).values()]
    return {
        "images": len(source),
        "contents": hashlib.sha256(" ".join(words).encode()).hexdigest(),
        "backbone": backbone_digest(model, preprocessing),
        "device": device.type,
        "precision": str(resolve_precision(precision, device)),
    }


def _open_folder(folder: Path, work: dict[str, Any]) -> None:
    """Make the folder of the parts, or check that its parts, if there are any, are those of this work.

    Parts without a description of their work are removed.
    """
    file = folder / "work.json"
    if not file.exists() or not any(folder.glob("*.parquet")):
        folder.mkdir(parents=True, exist_ok=True)
        for part in folder.glob("*.parquet"):  # left by a kill while they were removed
            part.unlink()
        write_json_atomically(file, work)
        return
    found, hashes = read_json(file), {"contents": "other images", "backbone": "another model or preprocessing"}
    if others := [
        hashes.get(name, f"{name} {found.get(name)!r} instead of {value!r}")
        for name, value in work.items()
        if found.get(name) != value
    ]:
        raise DataError(
            f"{folder} holds parts of interrupted work on something else ({'; '.join(others)}): remove that folder to "
            "begin anew, or choose another --out"
        )


def _counted(files: list[Path], source: Source) -> tuple[int, int]:
    """Number of images in the parts, and of their features; a warning names images that could not be read."""
    from pyarrow import parquet

    headers = [parquet.read_metadata(file) for file in files]
    counts = [header.num_rows for header in headers]
    missing = len(source) - sum(counts)
    if missing:
        short = next(number for number, count in enumerate(counts) if count < min(PART, len(source) - number * PART))
        known = set(parquet.read_table(files[short], columns=["id"])["id"].to_pylist())
        names = (valid_text(source.id(i)) for i in range(short * PART, len(source)))
        first = next(name for name in names if name not in known)
        warnings.warn(f"{missing} of {len(source)} images cannot be read and are left out: {first}, ...", stacklevel=3)
    width = parquet.read_schema(files[0]).field("embedding").type.list_size
    return sum(counts), width


def _write_joined(parts: Parts, path: Path) -> None:
    from pyarrow import parquet

    with parquet.ParquetWriter(path, parquet.read_schema(parts.files[0])) as writer:
        for table, _ in parts.read():
            writer.write_table(table)


def _in_memory(parts: Parts, source: Source) -> Embeddings:
    """All parts in memory."""
    array = np.empty((parts.images, parts.features), dtype=np.float32)
    ids: list[str] = []
    labels: list[int] = []
    for table, rows in parts.read():
        array[len(ids) : len(ids) + len(rows)] = rows
        ids += table["id"].to_pylist()
        labels += table["label"].to_pylist() if "label" in table.column_names else []
    known = None if source.labels is None else np.array(labels, dtype=np.int64)
    return Embeddings(array=array, ids=ids, labels=known, classes=source.classes)
