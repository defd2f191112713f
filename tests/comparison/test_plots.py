"""Plots of a comparison: which curves are drawn, their means and colours, and the files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from comparing import comparison, three, trial
from matplotlib.figure import Figure
from PIL import Image

from ssole.comparison import plots as module
from ssole.comparison.plots import draw, draw_arm
from ssole.comparison.result import ArmResult


def test_plots_show_every_arm_with_a_curve(tmp_path: Path) -> None:
    paths = draw(three(tmp_path))
    assert [path.name for path in paths] == ["accuracy-by-seconds.png", "accuracy-by-images.png", "rank-by-images.png"]
    for path in paths:
        assert np.asarray(Image.open(path).convert("L")).std() > 5
    draw(comparison(tmp_path))  # without any curve


def arm(*curves: list[dict[str, float]]) -> ArmResult:
    return ArmResult(steps=9, runs=[trial(seed, 0.5, curve=curve) for seed, curve in enumerate(curves)])


def points(*accuracies: float, **more: float) -> list[dict[str, float]]:
    """Curve with a point each minute, of 1,000 images."""
    return [
        {"images": 1000.0 * i, "seconds": 60.0 * i, "knn20": accuracy, **more}
        for i, accuracy in enumerate(accuracies, start=1)
    ]


def drawn(result: ArmResult, x: str = "seconds", y: str = "knn20") -> list[Any]:
    """Lines that an arm is drawn by, as (x, y): each run, then their mean."""
    axes = Figure().add_subplot()
    assert draw_arm(axes, "mine", result, x, y, "#000000", "-") is bool(axes.lines)
    assert [line.get_label() for line in axes.lines][-1:] == ["mine"] * bool(axes.lines)
    return [tuple(np.asarray(data).tolist() for data in line.get_data()) for line in axes.lines]


def test_a_line_for_each_run_and_one_for_their_mean() -> None:
    one, two, mean = drawn(arm(points(0.2, 0.4), points(0.4, 0.8)))
    assert one == ([1, 2], pytest.approx([20, 40]))  # minutes, and per cent
    assert two == ([1, 2], pytest.approx([40, 80]))
    assert mean == ([1, 2], pytest.approx([30, 60]))
    assert drawn(arm(points(0.2, 0.4)), x="images")[0] == ([1, 2], pytest.approx([20, 40]))  # thousands


def test_the_mean_ends_where_the_first_run_ends() -> None:
    lines = drawn(arm(points(0.2, 0.4, 0.6), points(0.4, 0.8), []))
    assert len(lines) == 3  # a run without a curve, such as one that failed, is not drawn
    assert lines[2] == ([1, 2], pytest.approx([30, 60]))


def test_points_without_the_figure_are_left_out() -> None:
    curve = points(0.2) + points(0.2, 0.3, effective_rank=7.0)[1:]
    assert drawn(arm(curve), y="effective_rank") == [([2], [7]), ([2], [7])]
    assert drawn(arm(points(0.2)), y="effective_rank") == []
    assert drawn(arm()) == []


def test_arms_are_told_apart_by_colour_and_then_by_dashes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    styles: list[tuple[str, str, str]] = []
    original = module.draw_arm

    def watched(axes: Any, name: str, result: ArmResult, x: str, y: str, colour: str, dashes: str) -> bool:
        found = original(axes, name, result, x, y, colour, dashes)
        if found and (x, y) == ("seconds", "knn20"):
            styles.append((name, colour, dashes))
        return found

    monkeypatch.setattr(module, "draw_arm", watched)
    monkeypatch.setattr(module, "_PLOTS", {"accuracy-by-seconds": ("seconds", "knn20")})  # one will do
    arms = {f"arm {i}": arm(points(0.5)) if i != 2 else arm() for i in range(10)}
    draw(comparison(tmp_path, **arms))
    assert len({(colour, dashes) for _, colour, dashes in styles}) == len(styles) == 9
    assert [dashes for _, _, dashes in styles] == ["-"] * 7 + ["--"] * 2  # an arm without a curve takes no colour
    assert styles[0][1] == styles[7][1]


def test_a_plot_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        draw(three(tmp_path / "nowhere"))
    assert list(tmp_path.iterdir()) == []
