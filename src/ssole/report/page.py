"""The page: facts of runs to HTML, with everything inside that it needs."""

from __future__ import annotations

import base64
import functools
import hashlib
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps
from torch import Tensor

from ssole import __version__
from ssole.report import charts
from ssole.report.neighbours import confusions, sample_neighbours, similar_pairs
from ssole.report.points import Table, colourings, place
from ssole.report.record import Record
from ssole.report.sample import Part, RunSample
from ssole.report.verdict import assess
from ssole.search.rows import outliers, unit_rows

MAX_PAGE_BYTES = 8_000_000
"""Bytes that a page should not exceed."""
_MAP_BYTES, _SHEET_BYTES = 5_500_000, 3_500_000  # of the maps of all runs, and of their thumbnails alone
_SHEET_SIDES = {5000: 40, 50_000: 24}  # pixels of a thumbnail on the map, by the largest number of images
_COLUMNS, _ROWS = 25, 20  # thumbnails of a sheet
_QUERIES, _OUTLIERS, _PAIRS, _MISTAKES = 6, 12, 6, 6
_SIDE = 96  # most pixels of an image beside the others


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Facts about a run that a page shows: its record, and a sample of its images or the reason why there is none."""

    record: Record
    sample: RunSample | None
    reason: str
    broken: str = ""
    """Why the network is of no use; empty otherwise."""
    columns: Path | Table | None = None
    """CSV file, or its content, with columns to colour the map by."""
    examples: tuple[list[Tensor], Tensor] | None = None
    """Images of which the page shows the views, and their indices in the data."""


def render(facts: Sequence[Facts], *, live: dict[str, Any] | None = None) -> str:
    """HTML of the page on some runs.

    ``live`` is for a page that a server keeps up to date: its "version", and "every" how many seconds it asks for news.
    """
    from bokeh.resources import Resources
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    folder = Path(__file__).parent
    style: dict[str, Any] = {"autoescape": True, "trim_blocks": True, "lstrip_blocks": True}
    environment = Environment(loader=FileSystemLoader(folder), undefined=StrictUndefined, **style)
    # sorted keys would put references in Bokeh's JSON before the models that they refer to
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False}
    template = environment.get_template("page.html.j2")
    records = [fact.record for fact in facts]
    parts = {fact.record.name: fact.sample.train for fact in facts if fact.sample is not None}
    return template.render(
        version=__version__,
        live=live,
        runs=[_run(fact, len(facts)) for fact in facts],
        curves=charts.curves(records),
        spectrum=charts.spectrum({name: (part.after, part.before) for name, part in parts.items()}) if parts else None,
        css=(folder / "page.css").read_text(encoding="utf-8"),
        js=(folder / "page.js").read_text(encoding="utf-8"),
        bokeh=Resources(mode="inline", components=["bokeh"]).js_raw,
    )


def _run(fact: Facts, runs: int) -> dict[str, Any]:
    """Values for the template of one run; `runs` is the number of runs on the page."""
    record, sample = fact.record, fact.sample
    cells = [] if record.evaluation is None else record.evaluation.cells()
    return {
        "record": record,
        "verdict": assess(record, sample, fact.broken),
        "reason": fact.reason,
        "table": list(zip(*cells, strict=True)),  # a metric a row, because many columns would not fit
        "digest": _digest(record),
        "environment": {
            key: str(value)
            for key, value in record.environment.items()
            if not isinstance(value, (dict, list, type(None)))
        },
        "config": (record.path / "config.yaml").read_text(encoding="utf-8"),
        "views": _views(record, *fact.examples) if fact.examples is not None else None,
        "pictures": None if sample is None else _pictures(fact, sample, runs),
    }


def _digest(record: Record) -> str:
    found = record.images
    if found is None:
        return "not recorded"
    text = f"{found.get('images', 'unknown')} images, SHA-256 of their names {found.get('ids', 'not recorded')}"
    contents = found.get("contents")
    if not isinstance(contents, dict) or not contents:
        return text
    digest = hashlib.sha256("".join(map(str, contents.values())).encode()).hexdigest()
    return f"{text}, of the contents of {len(contents)} of them {digest}"


def _pictures(fact: Facts, sample: RunSample, runs: int) -> dict[str, Any]:
    """Sections of a run that need its images."""
    train = sample.train
    seen = functools.partial(_seen, sample, train)
    apart = outliers(unit_rows(train.after), _OUTLIERS)
    found, test = confusions(sample, _MISTAKES), sample.test
    if found is not None and test is not None:
        for one in found["mistakes"]:
            one["images"] = [_seen(sample, test, row) for row in one["images"]]
    return {
        "count": len(train),
        "total": sample.total,
        "neighbours": [_neighbours(sample, *one) for one in sample_neighbours(train, _QUERIES)],
        "map": _map(fact, sample, runs),
        "confusions": found,
        "outliers": [{**seen(row), "value": f"{value:.2f}"} for row, value in zip(*apart, strict=True)],
        "similar_pairs": [
            {"images": [seen(one), seen(two)], "value": f"{value:.3f}"}
            for one, two, value in similar_pairs(train, _PAIRS)
        ],
    }


def _seen(sample: RunSample, part: Part, row: int) -> dict[str, Any]:
    """Values for the template of one image."""
    label = sample.name_of(int(part.labels[row])) if sample.labelled else None
    return {"src": data_uri(part.pictures([row], _SIDE)[0]), "id": part.id(row), "label": label}


def _neighbours(sample: RunSample, query: int, after: list[int], before: list[int]) -> dict[str, Any]:
    part = sample.train
    own = int(part.labels[query])

    def row_of(rows: list[int]) -> dict[str, Any]:
        images = [{**_seen(sample, part, row), "same": own >= 0 and int(part.labels[row]) == own} for row in rows]
        return {"images": images, "same": sum(one["same"] for one in images)}

    return {"query": _seen(sample, part, query), "known": own >= 0, "after": row_of(after), "before": row_of(before)}


def _views(record: Record, images: list[Tensor], indices: Tensor) -> dict[str, str]:
    """Picture of a few images and their views by the run's recipe, in the first epoch."""
    from ssole.views.picture import picture

    config = record.config
    sheet = picture(images, indices, recipe=config.augment, seed=config.seed, epoch=0)
    sheet.thumbnail((1600, 1600))
    crops = "; ".join(f"{crop.count} of {crop.size} px" for crop in config.augment.crops)
    return {"src": data_uri(sheet), "alt": f"{len(images)} images, each beside its views ({crops})"}


def _map(fact: Facts, sample: RunSample, runs: int) -> dict[str, Any]:
    """Map of a run: the chart, and the data for the page's script, within the run's share of the bytes of a page."""
    part = sample.train
    order = torch.randperm(len(part), generator=torch.Generator().manual_seed(1))
    columns = colourings(sample, fact.columns)
    data: dict[str, Any] = {
        "ids": [part.id(row) for row in range(len(part))],
        "columns": [{"name": one.name, "names": one.names, "codes": one.codes.tolist()} for one in columns],
        "where": order.argsort().tolist(),
    }
    chart = charts.scatter(place(part.after), fact.record.name)
    left = _MAP_BYTES // runs - len(json.dumps([chart, data]))  # names of many images may take megabytes
    side = next(side for most, side in _SHEET_SIDES.items() if len(part) <= most)
    made = sheets(lambda rows: part.pictures(rows, side), order.tolist(), side, min(_SHEET_BYTES // runs, left))
    data["sheets"], shown = made, min(len(part), len(made) * _COLUMNS * _ROWS)
    return {"chart": chart, "data": data, "columns": [one.name for one in columns], "shown": shown}


def sheets(
    get: Callable[[Sequence[int]], list[Image.Image]], order: Sequence[int], side: int, most_bytes: int
) -> list[str]:
    """Sheets of square thumbnails in the given order, as many whole sheets as fit into `most_bytes`.

    `get` gives the pictures of some images. Thumbnail number n is on sheet n // 500, in row (n % 500) // 25 and column
    n % 25.
    """
    made: list[str] = []
    size = 0
    for start in range(0, len(order), _COLUMNS * _ROWS):
        part = order[start : start + _COLUMNS * _ROWS]
        rows = -(-len(part) // _COLUMNS)
        sheet = Image.new("RGB", (_COLUMNS * side, rows * side), (128, 128, 128))
        for number, picture in enumerate(get(part)):
            square = ImageOps.pad(picture, (side, side), color=(128, 128, 128))
            sheet.paste(square, (number % _COLUMNS * side, number // _COLUMNS * side))
        made.append(data_uri(sheet, quality=60))
        size += len(made[-1])
        if size > most_bytes:
            return made[:-1]
    return made


def data_uri(picture: Image.Image, quality: int = 85) -> str:
    """Picture as a data URI, in WebP."""
    buffer = io.BytesIO()
    picture.save(buffer, format="WEBP", quality=quality)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
