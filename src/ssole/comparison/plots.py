"""Plots of a comparison: accuracy against wall clock and images seen, and effective rank against images seen."""

from __future__ import annotations

import statistics
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ssole.comparison.result import ArmResult, Comparison
from ssole.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class _Quantity(NamedTuple):
    """A key of a curve's points, as an axis shows it."""

    key: str
    label: str
    unit: float


_SECONDS = _Quantity("seconds", "minutes of training", 60.0)
_IMAGES = _Quantity("images", "thousands of images seen", 1000.0)
_ACCURACY = _Quantity("knn20", "kNN accuracy, k = 20, in %", 0.01)
_RANK = _Quantity("effective_rank", "effective rank of the embeddings", 1.0)
_PLOTS = {
    "accuracy-by-seconds": (_SECONDS, _ACCURACY),
    "accuracy-by-images": (_IMAGES, _ACCURACY),
    "rank-by-images": (_IMAGES, _RANK),
}
# Okabe and Ito's palette, told apart with every kind of colour vision; dashes after the seventh arm.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
_DASHES = ("-", "--", ":")


def draw(comparison: Comparison) -> list[Path]:
    """Write `accuracy-by-seconds.png`, `accuracy-by-images.png` and `rank-by-images.png` to the comparison's folder.

    They show the mean over runs, and each run faintly.

    Raises:
        ImportError: matplotlib is not installed.
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
            drawn += _draw_arm(axes, name, arm, x, y, colour, dashes)
        axes.set_xlabel(x.label)
        axes.set_ylabel(y.label)
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


def _draw_arm(axes: Axes, name: str, arm: ArmResult, x: _Quantity, y: _Quantity, colour: str, dashes: str) -> bool:
    """Draw an arm; False if no run of it has such a curve."""
    curves = [
        [(point[x.key] / x.unit, point[y.key] / y.unit) for point in run.curve if y.key in point] for run in arm.runs
    ]
    curves = [curve for curve in curves if curve]
    for curve in curves:
        axes.plot(*zip(*curve, strict=True), color=colour, alpha=0.25, linewidth=1, linestyle=dashes)
    if not curves:
        return False
    mean = [[statistics.fmean(values) for values in zip(*points, strict=True)] for points in zip(*curves, strict=False)]
    axes.plot(
        *zip(*mean, strict=True), color=colour, linewidth=2, linestyle=dashes, marker="o", markersize=3, label=name
    )
    return True
