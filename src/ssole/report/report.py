"""The report of one run or several: read, measure, write the page."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import suppress
from importlib.util import find_spec
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ssole.config import ConfigError
from ssole.data.base import Spec
from ssole.data.sources import open_source
from ssole.errors import listed, valid_text
from ssole.evaluation.checks import NotFiniteError
from ssole.files import require_writable, write_text_atomically
from ssole.models.weights_file import not_finite, read_weights
from ssole.progress import say
from ssole.report.record import Record, unique_names
from ssole.runtime import resolve_device

if TYPE_CHECKING:
    from ssole.report.page import Facts
    from ssole.report.points import Table

_PACKAGES = ("bokeh", "jinja2")
IMAGES = 4000
"""Images of a run that a report looks at by default."""
_MAX_IMAGES = 50_000
_PICTURES = '<section id="map">'  # text of a page with pictures of the images
_EXAMPLES = 4  # images of which the views are shown


def report(
    run: str | PathLike[str] | Any | Sequence[Any],
    *,
    data: Spec | None = None,
    out: str | PathLike[str] | None = None,
    images: int = IMAGES,
    columns: str | PathLike[str] | None = None,
    device: torch.device | str = "auto",
    progress: bool = True,
) -> Path:
    """Write one page (HTML) that shows whether training worked, and return its path.

        ssole.report("runs/mine")
        ssole.report(["runs/mine", "runs/other"], out="both.html")

    The page needs no network: its pictures and scripts are inside. Without the images of a run, it is made from the run
    folder alone and says so.

    Args:
        run: a run folder or :class:`Run`, or several, which the page shows side by side.
        data: images, as for pretraining; by default those of each run.
        out: file to write; by default `report.html` in the (first) run folder. An older report is replaced; one with
            pictures that cannot be made again only if ``out`` names it.
        images: largest number of images that are looked at, at most 50,000; they are drawn at random.
        columns: CSV file with the ids of images in its first column; its other columns can colour the map.
        device, progress: as for :func:`evaluate`.

    Raises:
        ConfigError: no run folder, a missing package, an argument out of range, or an older report that stays.
        DataError: the CSV file cannot be read, or names no image; or there are no such images as `data` names.
        ValueError: a damaged evaluation.json.
    """
    table = check_request(images, columns, data)
    chosen = resolve_device(device)
    from ssole.report.page import MAX_PAGE_BYTES, render  # here, because `import ssole` is to be quick

    records = read_records(run)
    path = _page_path(out, records[0].path)
    facts = [facts_of(one, data, table, limit=images, device=chosen, progress=progress) for one in records]
    if out is None:
        _keep_pictures(path, facts)
    for one in facts:
        say(f"{one.record.path}: {one.reason}", enabled=progress and bool(one.reason))
    text = render(facts)
    if len(text) > MAX_PAGE_BYTES:
        warnings.warn(f"{path} has {len(text) / 1e6:.1f} MB, more than intended: use fewer images", stacklevel=2)
    write_text_atomically(path, valid_text(text))
    return path


def _page_path(out: str | PathLike[str] | None, folder: Path) -> Path:
    """Path of the page, by default in a run folder; ConfigError if it cannot be written there."""
    path = Path(out) if out is not None else folder / "report.html"
    if path.is_dir() or not path.parent.is_dir():
        wrong = f"{path} is a folder" if path.is_dir() else f"there is no folder {path.parent}"
        raise ConfigError(f"{wrong}: the report is one file, such as report.html")
    if out is None:
        require_writable(path.parent, "write the page elsewhere (--out FILE)")
    return path


def _keep_pictures(path: Path, facts: Sequence[Facts]) -> None:
    """Raise a ConfigError if an earlier page has pictures that cannot be made again.

    That is so if all runs are finished, and none of their images can be opened.
    """
    gone = all(one.sample is None and one.record.finished and not one.broken for one in facts)
    if gone and path.is_file() and _PICTURES in path.read_text(encoding="utf-8", errors="replace"):
        stays = f"{path} has pictures from before, and stays as it is"
        raise ConfigError(f"{facts[0].reason} {stays}: --out FILE writes a page without pictures")


def check_request(images: int, columns: str | PathLike[str] | None, data: Spec | None) -> Table | None:
    """Table of columns, if any. What cannot be done is an error now, before any work."""
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        raise ConfigError(f"a report needs {' and '.join(missing)}: pip install 'ssole[report]'")
    if not 20 <= images <= _MAX_IMAGES:
        raise ConfigError(f"a report looks at 20 to {_MAX_IMAGES:,} images, got {images:,}")
    if data is not None:
        open_source(data)  # a mistyped name is an error; a run's own images may be gone
    if columns is None:
        return None
    from ssole.report.points import read_table

    return read_table(Path(columns))


def read_records(run: Any) -> list[Record]:
    """Records of run folders, with names that differ; ConfigError if one is no run folder."""
    given: list[Any] = list(run) if isinstance(run, (list, tuple)) else [run]
    if not given:
        raise ConfigError("a report needs a run folder, got none")
    return unique_names([Record.read(Path(getattr(one, "path", one))) for one in given])


def facts_of(
    record: Record,
    data: Spec | None,
    columns: Table | None,
    *,
    limit: int,
    device: torch.device,
    progress: bool,
) -> Facts:
    """Facts of a run that the page shows: its record and, where there are any, at most `limit` of its images."""
    from ssole.report.page import Facts
    from ssole.report.sample import open_examples, open_sample

    broken = ""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on single images: they are left out, as the section on the run says
        try:
            sample, reason = open_sample(record, data, limit=limit, device=device, progress=progress)
        except NotFiniteError as error:
            sample, reason, broken = None, "There are no pictures: the network gives no finite features.", str(error)
        if record.finished and sample is None and not broken:
            with suppress(ConfigError):  # weights that cannot be read: the reason for no pictures says so
                bad = not_finite(read_weights(record.path / "backbone.safetensors"))
                broken = f"the weights hold NaN or infinity: {listed(bad, 4)}" if bad else ""
        shown = None if record.finished and sample is None else open_examples(record, data, limit=_EXAMPLES)
    return Facts(record=record, sample=sample, reason=reason, broken=broken, columns=columns, examples=shown)
