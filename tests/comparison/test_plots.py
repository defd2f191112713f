"""Plots of a comparison: which curves are drawn, their means and colours, and the files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from comparing import comparison, three
from PIL import Image

from ssole.comparison.plots import draw


def test_plots_show_every_arm_with_a_curve(tmp_path: Path) -> None:
    paths = draw(three(tmp_path))
    assert [path.name for path in paths] == ["accuracy-by-seconds.png", "accuracy-by-images.png", "rank-by-images.png"]
    for path in paths:
        assert np.asarray(Image.open(path).convert("L")).std() > 5
    draw(comparison(tmp_path))  # without any curve
