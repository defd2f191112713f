"""Plots of a comparison: accuracy against wall clock and images seen, and effective rank against images seen."""

from __future__ import annotations

import statistics
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ssole.comparison.result import ArmResult, Comparison
from ssole.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes


_AXES = {  # label and unit of each key of a curve's points
    "seconds": ("minutes of training", 60.0),
    "images": ("thousands of images seen", 1000.0),
    "knn20": ("kNN accuracy, k = 20, in %", 0.01),
    "effective_rank": ("effective rank of the embeddings", 1.0),
}
_PLOTS = {
    "accuracy-by-seconds": ("seconds", "knn20"),
    "accuracy-by-images": ("images", "knn20"),
    "rank-by-images": ("images", "effective_rank"),
}
# Okabe and Ito's palette, told apart with every kind of colour vision; dashes after the seventh arm.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
_DASHES = ("-", "--", ":")


def draw(comparison: Comparison) -> list[Path]:
    """Write `accuracy-by-seconds.png`, `accuracy-by-images.png` and `rank-by-images.png` to the comparison's folder.

    They show the mean over runs, and each run faintly. Without matplotlib, it is an ImportError.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    paths = []
    for file, (x, y) in _PLOTS.items():
        figure = Figure(figsize=(8, 4.2), layout="constrained")
        axes = figure.add_subplot()
        drawn = 0
        for name, arm in comparison.arms.items():
            colour, dashes = _COLOURS[drawn % len(_COLOURS)], _DASHES[drawn // len(_COLOURS) % len(_DASHES)]
            drawn += draw_arm(axes, name, arm, x, y, colour, dashes)
        axes.set_xlabel(_AXES[x][0])
        axes.set_ylabel(_AXES[y][0])
        axes.grid(color="#eaeef2")
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_axisbelow(True)
        if drawn:
            figure.legend(frameon=False, loc="outside right upper", fontsize="small", handlelength=3)
        path = comparison.path / f"{file}.png"
        FigureCanvasAgg(figure)
        write_atomically(path, partial(figure.savefig, format="png", dpi=130))
        paths.append(path)
    return paths


def draw_arm(axes: Axes, name: str, arm: ArmResult, x: str, y: str, colour: str, dashes: str) -> bool:
    """Draw an arm; False if no run of it has such a curve."""
    found = (
        [(point[x] / _AXES[x][1], point[y] / _AXES[y][1]) for point in run.curve if y in point] for run in arm.runs
    )
    curves = [curve for curve in found if curve]
    for curve in curves:
        axes.plot(*zip(*curve, strict=True), color=colour, alpha=0.25, linewidth=1, linestyle=dashes)
    if not curves:
        return False
    mean = [[statistics.fmean(values) for values in zip(*points, strict=True)] for points in zip(*curves, strict=False)]
    axes.plot(
        *zip(*mean, strict=True), color=colour, linewidth=2, linestyle=dashes, marker="o", markersize=3, label=name
    )
    return True
