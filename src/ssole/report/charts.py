"""Charts of a page as JSON that BokehJS draws."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ssole.evaluation.results import LABEL_FREE, METRICS
from ssole.report.record import Record, Series

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c564b", "#7f7f7f")
"""Colours of lines, distinct for the colour-blind too (Okabe and Ito)."""
_DASHES = ("solid", "dashed", "dotted", "dotdash", "dashdot")


def curves(records: Sequence[Record]) -> dict[str, dict[str, Any]]:
    """Charts of what was logged while training, by title: loss, rank, accuracy, label-free figures, learning rate."""
    evaluated = dict.fromkeys(key for record in records for key in record.evaluated)
    groups = {
        "Loss and its terms": list(dict.fromkeys(term for record in records for term in record.terms)),
        "Accuracy while training": [key for key in evaluated if key not in LABEL_FREE],
        "Label-free figures while training": [key for key in evaluated if key in LABEL_FREE],
        "Effective rank of embeddings": ["effective_rank"],
        "Learning rate": ["lr"],
    }
    charts = {}
    for title, keys in groups.items():
        lines = [
            (_line_name(record, key, records, keys), record.series(key), *_style(i, j, records))
            for i, record in enumerate(records)
            for j, key in enumerate(key for key in keys if len(record.series(key)[0]) > 1)  # one point is no curve
        ]
        if lines:
            charts[title] = _chart(title, "step", lines)
    return charts


def _style(run: int, key: int, records: Sequence[Record]) -> tuple[str, str]:
    """Colour and dash. One run: a colour for each figure. Several: a colour for each run, a dash for each figure."""
    if len(records) == 1:
        return COLOURS[key % len(COLOURS)], "solid"
    return COLOURS[run % len(COLOURS)], _DASHES[key % len(_DASHES)]


def _line_name(record: Record, key: str, records: Sequence[Record], keys: Sequence[str]) -> str:
    words = [record.name] if len(records) > 1 else []
    words += [METRICS.get(key, key.replace("_", " "))] if len(keys) > 1 or not words else []
    return ", ".join(words)


def spectrum(parts: dict[str, tuple[Tensor, Tensor]]) -> dict[str, Any]:
    """Chart of the singular values of centred features, after and before training, of each run by name."""
    lines = []
    for number, (name, (after, before)) in enumerate(parts.items()):
        prefix = f"{name}, " if len(parts) > 1 else ""
        for word, features, dash in (("trained", after, "solid"), ("untrained", before, "dashed")):
            values = singular_values(features)
            hue = number if len(parts) > 1 or word == "trained" else 1
            lines.append((prefix + word, (list(range(1, len(values) + 1)), values), COLOURS[hue % len(COLOURS)], dash))
    return _chart("Singular values", "direction, strongest first", lines, y="share", log=True)


def singular_values(features: Tensor) -> list[float]:
    """Singular values of centred features, descending, as shares of their sum; rounding errors are left out."""
    centred = features.double() - features.double().mean(0)
    values = torch.linalg.svdvals(centred)
    values = values[values > values[0] * 1e-6]  # float32 features have no more digits
    return (values / values.sum()).tolist() if len(values) else []


def _chart(
    title: str, x: str, lines: Sequence[tuple[str, Series, str, str]], *, y: str | None = None, log: bool = False
) -> dict[str, Any]:
    from bokeh.models import HoverTool
    from bokeh.plotting import figure

    plot = figure(
        height=280,
        sizing_mode="stretch_width",
        tools="pan,box_zoom,reset,save",
        y_axis_type="log" if log else "auto",
        x_axis_label=x,
        y_axis_label=lines[0][0] if len(lines) == 1 else y,  # a single line has no legend
    )
    for name, (steps, values), colour, dash in lines:
        drawn = plot.line(steps, values, legend_label=name, color=colour, line_dash=dash, line_width=2, name=name)
        tooltips = [(x.partition(",")[0], "@x"), ("$name", "@y{0.0000}")]
        plot.add_tools(HoverTool(renderers=[drawn], mode="vline", tooltips=tooltips))
    legend = plot.legend[0]
    legend.update(visible=len(lines) > 1, click_policy="hide", orientation="horizontal", ncols=3, spacing=12)
    plot.add_layout(legend, "above")
    ranges = [f"{name} from {values[0]:.3g} to {values[-1]:.3g}" for name, (_, values), *_ in lines if values]
    return _finish(plot, f"{title}: {', '.join(ranges)}")  # for those who do not see the chart


def scatter(points: NDArray[np.float32], name: str) -> dict[str, Any]:
    """Chart of the map; the page's script colours the points and shows what they are."""
    from bokeh.models import ColumnDataSource, HoverTool, LinearColorMapper, WheelZoomTool
    from bokeh.plotting import figure
    from bokeh.transform import transform

    count = len(points)
    shades = {"code": np.zeros(count, dtype=np.uint8), "alpha": np.full(count, 0.8, dtype=np.float32)}
    source = ColumnDataSource({"x": points[:, 0], "y": points[:, 1], **shades}, name="points")
    mapper = LinearColorMapper(palette=["#7f7f7f"], low=-0.5, high=0.5, name="colours")
    tools = "pan,box_zoom,tap,reset,save"
    plot = figure(height=520, sizing_mode="stretch_width", tools=tools, active_scroll=None)
    size = 7 if count < 2000 else 5 if count < 10_000 else 3
    colour = transform("code", mapper)
    drawn = plot.scatter("x", "y", source=source, size=size, fill_color=colour, line_color=None, fill_alpha="alpha")
    drawn.nonselection_glyph = None  # choosing a point does not fade the others
    drawn.selection_glyph = drawn.glyph.clone(size=size + 8, line_color="#000000", line_width=2, name="chosen")
    plot.add_tools(HoverTool(tooltips=None, renderers=[drawn], mode="mouse"))
    zoom = WheelZoomTool(modifiers="ctrl")  # without Ctrl, the wheel scrolls the page
    plot.add_tools(zoom)
    plot.toolbar.active_scroll = zoom
    plot.axis.visible = False
    plot.grid.visible = False
    return _finish(plot, f"Map of the images of {name}")


def _finish(plot: Any, label: str) -> dict[str, Any]:
    """JSON of a figure. It has no logo, which would be a link out of the page, and no background of its own."""
    from bokeh.embed import json_item

    plot.toolbar.update(logo=None, autohide=True)
    plot.update(background_fill_color=None, border_fill_color=None, outline_line_color=None)
    return {"label": label, "item": json_item(plot)}
