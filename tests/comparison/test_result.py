"""Means, paired differences and ranks; the table and the plots."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from ssole.comparison.plots import draw
from ssole.comparison.result import ArmResult, Comparison, Summary
from ssole.comparison.trial import Trial


def trial(seed: int, knn: float, **changes: object) -> Trial:
    scores = {"knn20": knn, "linear": knn + 0.02, "centred_effective_rank": 31.5}
    curve = [
        {"images": 100.0 * i, "seconds": 60.0 * i, "knn20": knn * i / 3, "effective_rank": 9.0 * i} for i in (1, 2, 3)
    ]
    values = {"scores": scores, "seconds": 180.0, "images_per_second": 250.0, "peak_memory": 3 << 30, "curve": curve}
    return Trial(steps=9, seed=seed, settings={}, **{**values, **changes})  # type: ignore[arg-type]


def comparison(folder: Path, **arms: ArmResult) -> Comparison:
    data = {"train": "photos, 90 images", "test": "photos, 10 images"}
    return Comparison(path=folder, arms=arms, request={"seeds": 3}, environment={}, data=data, notes=["A note."])


def three(folder: Path) -> Comparison:
    return comparison(
        folder,
        clear=ArmResult(steps=9, runs=[trial(0, 0.50), trial(1, 0.52), trial(2, 0.54)]),
        best=ArmResult(steps=9, runs=[trial(0, 0.60), trial(1, 0.63), trial(2, 0.63)]),
        near=ArmResult(steps=9, runs=[trial(0, 0.65), trial(1, 0.60), trial(2, 0.58)]),
        broken=ArmResult(steps=9, error="RuntimeError: [red]no such \x1bthing"),
        partly=ArmResult(steps=9, runs=[trial(0, 0.90), Trial(steps=9, seed=1, settings={}, error="diverged")]),
    )


def test_differences_are_paired_by_seed(tmp_path: Path) -> None:
    result = three(tmp_path)
    assert result.best == "best"  # an arm with a failed run is not ranked
    assert result.difference("best") is None
    difference = result.difference("clear")
    assert difference is not None
    pairs = np.array([0.10, 0.11, 0.09])
    assert difference.mean == pytest.approx(pairs.mean())
    assert difference.standard_error == pytest.approx(pairs.std(ddof=1) / math.sqrt(3))
    assert difference.clear
    near = result.difference("near")
    assert near is not None
    assert not near.clear
    assert result.difference("broken") is None
    partly = result.difference("partly")
    assert partly is not None
    assert (partly.n, partly.standard_error, partly.clear) == (1, None, False)


def test_summaries_have_mean_std_and_n(tmp_path: Path) -> None:
    summary = three(tmp_path).arms["clear"].summary()
    assert summary["knn20"] == Summary(mean=pytest.approx(0.52), std=pytest.approx(0.02), n=3)
    assert summary["images_per_second"].mean == 250
    assert Summary.of([1.0]) == Summary(mean=1.0, std=None, n=1)


def test_the_file_is_json_and_complete(tmp_path: Path) -> None:
    saved = json.loads(three(tmp_path).save().read_text())
    assert saved["best"] == "best"
    assert saved["arms"]["clear"]["difference_to_best"]["clear"] is True
    assert saved["arms"]["clear"]["runs"][2]["scores"]["knn20"] == 0.54
    assert saved["arms"]["broken"]["error"].startswith("RuntimeError")


def test_the_table_names_the_best_and_every_failure(tmp_path: Path) -> None:
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(three(tmp_path).table())
    text = console.export_text()
    rows = [line.split()[1] for line in text.splitlines() if line.startswith("│")]
    assert rows == ["best", "near", "clear", "broken", "partly"]
    assert "62.0±1.7" in text
    assert "10.0±0.6" in text
    assert ", unclear" in text
    assert r"broken failed: RuntimeError: [red]no such \x1bthing" in text
    assert "A note." in text
    console.print(comparison(tmp_path).table())  # before anything has finished


def test_plots_show_every_arm_with_a_curve(tmp_path: Path) -> None:
    paths = draw(three(tmp_path))
    assert [path.name for path in paths] == ["accuracy-by-seconds.png", "accuracy-by-images.png", "rank-by-images.png"]
    for path in paths:
        assert np.asarray(Image.open(path).convert("L")).std() > 5
    draw(comparison(tmp_path))  # without any curve
