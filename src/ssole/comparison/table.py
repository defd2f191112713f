"""Table of a comparison for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ssole.comparison.result import Comparison, Difference, Summary
from ssole.progress import data_size

if TYPE_CHECKING:
    from rich.table import Table

_HEADINGS = {"knn20": "kNN, %", "linear": "linear, %", "centred_effective_rank": "rank"}


def table(comparison: Comparison) -> Table:
    """Table for ``rich.print``: an arm a row, best first and those that failed last; their reasons stand below."""
    from rich.table import Table
    from rich.text import Text

    seeds = comparison.request["seeds"]
    title = f"{comparison.data['test']}; {seeds} {'run' if seeds == 1 else 'runs'} of each, mean ± std"
    failures = [f"{name} failed: {arm.reason}" for name, arm in comparison.arms.items() if arm.reason is not None]
    caption = Text("\n".join([*comparison.notes, *failures]))
    shown = Table(title=Text(title), caption=caption, caption_justify="left")
    shown.add_column("")
    for heading in (*_HEADINGS.values(), "images/s", "memory", "behind best"):
        shown.add_column(heading, justify="right")
    scores = {name: arm.mean_score for name, arm in comparison.arms.items()}
    for name in sorted(scores, key=lambda name: (scores[name] is None, -(scores[name] or 0))):
        arm = comparison.arms[name]
        summary = arm.summary()
        cells = [_score(metric, summary.get(metric)) for metric in _HEADINGS]
        rate, memory = summary.get("images_per_second"), summary.get("peak_memory")
        cells += ["-" if rate is None else f"{rate.mean:,.0f}", "-" if memory is None else data_size(memory.mean)]
        shown.add_row(Text(name), *cells, _behind(comparison.difference(name), is_best=name == comparison.best))
    return shown


def _score(metric: str, summary: Summary | None) -> str:
    if summary is None:
        return "-"
    scale, digits = (1, 0) if "rank" in metric else (100, 1)
    spread = "" if summary.std is None else f"±{scale * summary.std:.{digits}f}"
    return f"{scale * summary.mean:.{digits}f}{spread}"


def _behind(difference: Difference | None, *, is_best: bool) -> str:
    if difference is None:
        return "best" if is_best else "-"
    if difference.standard_error is None:
        return f"{100 * difference.mean:.1f}, one pair"
    sure = "" if difference.clear else ", unclear"
    return f"{100 * difference.mean:.1f}±{100 * difference.standard_error:.1f}{sure}"
