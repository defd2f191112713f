"""Draw the two pictures of the README.

    python benchmarks/pictures.py curve runs/demo-seed0 runs/demo-seed1 runs/demo-seed2 --raw-pixels 57 --untrained 33
    python benchmarks/pictures.py views --recipe digits-m

`curve` reads each run's metrics.jsonl: every line has a `step`, and those with `low_rank`, `high_rank` or `knn20` give
the curves. The runs are one recipe with several seeds.
Needs matplotlib: pip install 'ssole[plot]'.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from ssole.config import ViewRecipe, load
from ssole.data.digits_m import digits_m
from ssole.views import make_views

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Metrics = list[dict[str, float]]
IMAGES = Path(__file__).parent.parent / "docs" / "img"
INK, FAINT = "#24292f", "#8c959f"
# Okabe and Ito's palette: told apart with every kind of colour vision, and in print
BLUE, ORANGE, GREEN = "#0072b2", "#d55e00", "#009e73"
STYLE = {
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#eaeef2",
    "xtick.color": INK,
    "ytick.color": INK,
    "figure.facecolor": "white",  # a light card on light and dark pages alike
    "savefig.facecolor": "white",
}


def read_metrics(run: Path) -> Metrics:
    """The lines of a run's metrics.jsonl."""
    path = run / "metrics.jsonl"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: {run} is not the folder of a run that has begun")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def series(lines: Metrics, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values (N,), (N,) of one metric. A step that a resumed run logged again counts once, as it was last."""
    by_step = {line["step"]: line[name] for line in lines if name in line}
    steps = sorted(by_step)
    return np.array(steps, dtype=float), np.array([by_step[step] for step in steps], dtype=float)


def smooth(values: np.ndarray) -> np.ndarray:
    """Running mean (N,) over a fortieth of the run, with shorter windows at both ends."""
    half = max(1, len(values) // 80)
    total = np.concatenate([[0.0], np.cumsum(values)])
    start = np.maximum(np.arange(len(values)) - half, 0)
    stop = np.minimum(np.arange(len(values)) + half + 1, len(values))
    return (total[stop] - total[start]) / (stop - start)


def draw_seeds(axes: Axes, runs: Sequence[Metrics], name: str, colour: str, *, label: str, scale: float = 1) -> float:
    """One thin line a seed and their mean as a thick one; gives the mean's last value."""
    curves = [series(lines, name) for lines in runs]
    if any(len(steps) == 0 for steps, _ in curves):
        known = sorted({key for lines in runs for line in lines for key in line})
        raise ValueError(f"a run has no {name!r} in its metrics.jsonl; the runs have {known}")
    shared = set.intersection(*(set(steps) for steps, _ in curves))
    steps = np.array(sorted(shared))
    values = scale * np.array([[v for step, v in zip(*one, strict=True) if step in shared] for one in curves])
    mean = values.mean(axis=0)
    if len(steps) > 80:  # logged every few steps: noise of single batches
        values, mean = np.array([smooth(one) for one in values]), smooth(mean)
    if len(runs) > 1:
        axes.plot(steps, values.T, color=colour, linewidth=0.7, alpha=0.45)
    axes.plot(steps, mean, color=colour, linewidth=2.2, solid_capstyle="round", label=label)
    axes.set_xlim(0, steps[-1])
    return float(mean[-1])


def curve(runs: Sequence[Path], raw_pixels: float | None, untrained: float | None) -> Figure:
    """Loss terms on the left, kNN accuracy with its two baselines (in %) on the right."""
    import matplotlib.pyplot as plt

    lines = [read_metrics(run) for run in runs]
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.6, 3.5), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.14, h_pad=0.14)
    draw_seeds(left, lines, "high_rank", ORANGE, label="high rank (spread)")
    draw_seeds(left, lines, "low_rank", BLUE, label="low rank (alignment)")
    left.set_title("Terms of the loss")
    left.set_ylim(bottom=0)
    left.legend(frameon=False, labelcolor="linecolor", handlelength=1.2, prop={"weight": "bold", "size": 9.5})

    last = draw_seeds(right, lines, "knn20", GREEN, label="SSOLE", scale=100)
    note(right, last, f"SSOLE  {last:.0f} %", GREEN)
    for value, label in ((raw_pixels, "raw pixels"), (untrained, "untrained")):
        if value is not None:
            right.axhline(value, color=FAINT, linewidth=1.2, linestyle=(0, (4, 3)))
            note(right, value, f"{label}  {value:.0f} %", "#57606a")
    right.set_title("kNN accuracy on test images, %")
    right.set_ylim(0, 100)
    minutes = np.mean([max(line.get("seconds", 0.0) for line in run) for run in lines]) / 60
    left.set_xlabel("step" if len(runs) == 1 else f"step   (thin: {len(runs)} seeds, thick: their mean)")
    right.set_xlabel(f"step   ({minutes:.1f} minutes of training in all)" if minutes else "step")
    return figure


def note(axes: Axes, height: float, text: str, colour: str) -> None:
    """Name a level at its right end, above the line."""
    axes.annotate(
        text, (1, height), xycoords=("axes fraction", "data"), xytext=(-4, 5), textcoords="offset points",
        color=colour, ha="right", va="bottom", fontsize=9.5, fontweight="bold",
    )  # fmt: skip


def views(recipe: ViewRecipe, *, rows: int = 4, blocks: int = 2, shown: int = 6) -> Figure:
    """Rows of one digits-m image and the first `shown` views of it, in `blocks` columns of rows."""
    import matplotlib.pyplot as plt

    images, labels = digits_m("train")
    chosen = [int(np.flatnonzero(labels == digit)[0]) for digit in range(rows * blocks)]
    batch = torch.from_numpy(images[chosen]).permute(0, 3, 1, 2).contiguous()
    made = make_views(batch, torch.tensor(chosen), recipe=recipe, seed=0, epoch=0)[0]
    made = made * torch.tensor(recipe.std)[:, None, None] + torch.tensor(recipe.mean)[:, None, None]

    inches, margin, head, gap = 8.6, 0.14, 0.28, 0.4  # the gap, in tiles, follows the image; twice it parts the blocks
    period = 1 + gap + shown + 2 * gap
    tile = (inches - 2 * margin) / (blocks * period - 2 * gap)
    height = rows * tile + head + 2 * margin
    figure = plt.figure(figsize=(inches, height))
    for number in range(rows * blocks):
        block, row = divmod(number, rows)
        for column in range(1 + shown):
            left = margin + tile * (block * period + column + (gap if column else 0))
            bottom = margin + tile * (rows - 1 - row)
            axes = figure.add_axes((left / inches, bottom / height, 0.94 * tile / inches, 0.94 * tile / height))
            axes.set_axis_off()
            picture = batch[number] / 255 if column == 0 else made[number, column - 1]
            axes.imshow(picture.permute(1, 2, 0).clamp(0, 1).numpy(), interpolation="nearest")
            if row == 0 and column < 2:
                axes.set_title("image" if column == 0 else "views", loc="left", pad=5, fontsize=10)
    return figure


def main() -> None:
    """Parse, draw, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("curve", help="loss and kNN over training, of one run or several seeds")
    one.add_argument("runs", nargs="+", type=Path, help="run folders")
    one.add_argument("--raw-pixels", type=float, help="kNN accuracy of raw pixels, in %%")
    one.add_argument("--untrained", type=float, help="kNN accuracy of the untrained network, in %%")
    one.add_argument("--out", type=Path, default=IMAGES / "demo-curve.png")
    two = commands.add_parser("views", help="images of digits-m and views of them")
    two.add_argument("--recipe", default="digits-m", help="whose augmentation to show")
    two.add_argument("--out", type=Path, default=IMAGES / "views.png")
    options = parser.parse_args()

    import matplotlib

    matplotlib.use("Agg")
    with matplotlib.rc_context(STYLE):
        if options.command == "curve":
            figure = curve(options.runs, options.raw_pixels, options.untrained)
        else:
            config = load(options.recipe, views=6)
            figure = views(config.augment)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(options.out, dpi=200)
    print(options.out)


if __name__ == "__main__":
    main()
