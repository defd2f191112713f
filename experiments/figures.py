"""Pictures of docs/experiments.md that are drawn from committed results, in seconds.

    python experiments/figures.py

Writes docs/img/experiments-*.png from benchmarks/results/compare-*.json. The other pictures there are what `ssole
compare` draws by itself. Needs matplotlib: pip install 'ssole[plot]'.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssole.comparison.plots import draw_arm
from ssole.comparison.result import ArmResult
from ssole.comparison.trial import Trial
from theory import BLUE, FAINT, GREEN, IMAGES, ORANGE, STYLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RESULTS = Path(__file__).parent.parent / "benchmarks" / "results"
SEEN = "thousands of images seen"
COLOURS = {"ssole": BLUE, "simclr": ORANGE, "ole": ORANGE, "barlow-twins": GREEN, "vicreg": FAINT}


def arms_of(name: str) -> dict[str, Any]:
    """Arms of a comparison by name."""
    arms: dict[str, Any] = json.loads((RESULTS / f"compare-{name}.json").read_text(encoding="utf-8"))["arms"]
    return {arm: found for arm, found in arms.items() if found["runs"]}


def result_of(arm: dict[str, Any]) -> ArmResult:
    """Runs of an arm as `ssole compare` draws them."""
    return ArmResult(steps=arm["steps"], runs=[Trial(**run) for run in arm["runs"]])


def draw_settings() -> Figure:
    """Accuracy against batch size, lambda, gamma and embedding dimension."""
    import matplotlib.pyplot as plt

    figure, ((batch, weight), (share, width)) = plt.subplots(2, 2, figsize=(8.5, 6))
    for axes in (batch, weight, width):
        axes.set_xscale("log")
    for method in ("ssole", "simclr", "barlow-twins", "vicreg"):
        draw_scores(batch, "batch-size", method, "knn20", COLOURS[method], method)
    batch.set(title="batch size, at equal images seen", ylabel="kNN accuracy, %")
    for axes, name, prefix in ((weight, "lambda", "lambda"), (share, "gamma", "gamma"), (width, "width", "D")):
        draw_scores(axes, name, prefix, "knn20", BLUE, "kNN")
        draw_scores(axes, name, prefix, "linear", ORANGE, "linear probe")
    weight.set(title="lambda, as published", ylabel="accuracy, %")
    share.set(title="gamma, as published", ylabel="accuracy, %", ylim=(47.5, 54.5))
    width.set(title="embedding dimension D, as published", ylabel="accuracy, %")
    for axes, place in (
        (batch, "lower right"),
        (weight, "lower center"),
        (share, "upper right"),
        (width, "lower right"),
    ):
        axes.legend(loc=place, fontsize=8)
    return figure


def draw_scores(axes: Axes, name: str, prefix: str, score: str, colour: str, label: str) -> None:
    """Mean and standard deviation of a score of the arms called `prefix NUMBER`, against the number."""
    found = {float(arm.split()[-1]): arms for arm, arms in arms_of(name).items() if arm.rpartition(" ")[0] == prefix}
    points = [(x, one["summary"][score]) for x, one in sorted(found.items()) if score in one["summary"]]
    axes.errorbar(
        [x for x, _ in points],
        [100 * one["mean"] for _, one in points],
        [100 * (one["std"] or 0) for _, one in points],
        color=colour, label=label, marker="o", markersize=3, capsize=2, linewidth=1.4,
    )  # fmt: skip
    numbers = sorted(found)
    axes.set_xticks(numbers, [f"{x:g}" for x in numbers])
    axes.minorticks_off()


def draw_ole() -> Figure:
    """Effective rank of the embeddings and kNN accuracy of OLE and SSOLE in the course of training."""
    import matplotlib.pyplot as plt

    figure, (rank, accuracy) = plt.subplots(1, 2, figsize=(8.5, 3.2))
    for name, arm in arms_of("ole").items():
        draw_arm(rank, name, result_of(arm), "images", "effective_rank", COLOURS[name], "-")
        draw_arm(accuracy, name, result_of(arm), "images", "knn20", COLOURS[name], "-")
    rank.set(ylabel="effective rank of the embeddings", xlabel=SEEN)
    accuracy.set(ylabel="kNN accuracy, %", xlabel=SEEN, ylim=(0, None))
    accuracy.axhline(10, color=FAINT, linestyle=":", label="chance")
    for axes in (rank, accuracy):
        axes.legend(loc="center right")
    return figure


def draw_shipped() -> Figure:
    """kNN accuracy of the shipped recipe and of SimCLR in the course of 600 and of 4,000 steps."""
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(8.5, 3.2))
    for axes, steps in zip(panels, (600, 4000), strict=True):
        for name, arm in arms_of(f"cifar10-{steps}-shipped").items():
            label = f"{name}, {len(arm['runs'])} runs"
            draw_arm(axes, label, result_of(arm), "images", "knn20", COLOURS[name], "-")
        axes.set(title=f"{steps:,} steps", ylabel="kNN accuracy, %", xlabel=SEEN)
        axes.legend(loc="lower right")
    return figure


PICTURES = {"settings": draw_settings, "ole": draw_ole, "shipped": draw_shipped}


def main() -> None:
    import matplotlib

    matplotlib.use("Agg")
    with matplotlib.rc_context(STYLE):
        for name, draw in PICTURES.items():
            draw().savefig(IMAGES / f"experiments-{name}.png", dpi=110)


if __name__ == "__main__":
    main()
