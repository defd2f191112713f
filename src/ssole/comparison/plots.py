"""Plots of a comparison: accuracy against wall clock and against images seen."""

from __future__ import annotations

import statistics
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ssole.comparison.result import ArmResult, Comparison
from ssole.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes

AXES = {"seconds": "minutes of training", "images": "thousands of images seen"}
_SCALE = {"seconds": 60.0, "images": 1000.0}
# Okabe and Ito's palette, told apart with every kind of colour vision; dashes after the seventh arm.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
_DASHES = ("-", "--", ":")


def draw(comparison: Comparison) -> list[Path]:
    """Write `accuracy-by-seconds.png` and `accuracy-by-images.png`: the mean over runs, and each run faintly.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    arms = {name: arm for name, arm in comparison.arms.items() if any(run.curve for run in arm.runs)}
    paths = []
    for axis, label in AXES.items():
        figure = Figure(figsize=(8, 4.2), layout="constrained")
        axes = figure.add_subplot()
        for number, (name, arm) in enumerate(arms.items()):
            colour = _COLOURS[number % len(_COLOURS)]
            _draw_arm(axes, name, arm, axis, colour, _DASHES[number // len(_COLOURS) % len(_DASHES)])
        axes.set_xlabel(label)
        axes.set_ylabel("kNN accuracy, k = 20, in %")
        axes.grid(color="#eaeef2")
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_axisbelow(True)
        if arms:
            figure.legend(frameon=False, loc="outside right upper", fontsize="small", handlelength=3)
        path = comparison.path / f"accuracy-by-{axis}.png"
        FigureCanvasAgg(figure)
        write_atomically(path, partial(figure.savefig, format="png", dpi=130))
        paths.append(path)
    return paths


def _draw_arm(axes: Axes, name: str, arm: ArmResult, axis: str, colour: str, dashes: str) -> None:
    curves = [run.curve for run in arm.runs if run.curve]
    for curve in curves:
        axes.plot(*_points(curve, axis), color=colour, alpha=0.25, linewidth=1, linestyle=dashes)
    shared = min(map(len, curves))
    mean = [
        {key: statistics.fmean(curve[i][key] for curve in curves) for key in (axis, "knn20")} for i in range(shared)
    ]
    axes.plot(*_points(mean, axis), color=colour, linewidth=2, linestyle=dashes, marker="o", markersize=3, label=name)


def _points(curve: list[dict[str, float]], axis: str) -> tuple[list[float], list[float]]:
    return [point[axis] / _SCALE[axis] for point in curve], [100 * point["knn20"] for point in curve]
