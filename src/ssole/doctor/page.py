"""Printed page of a report: facts, verdicts with advice, estimated cost and the command to type."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ssole.doctor.contents import ASPECTS, Contents, Copies, Leak, Range
from ssole.doctor.estimate import Estimate
from ssole.doctor.findings import FAR_TOO_FEW
from ssole.doctor.report import Finding, Level, Report
from ssole.doctor.scan import Unreadable
from ssole.errors import printable
from ssole.progress import data_size, duration

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

_SHOWN = 3  # examples of a finding; the JSON has all
_BAR = 24  # characters of the longest bar
_STYLES: dict[Level, str] = {"ok": "green", "look": "bold yellow", "stop": "bold red"}
_WORDS: dict[Level, str] = {"ok": "OK", "look": "look at this", "stop": "stop"}
_MODES = {
    "1": "black and white",
    "L": "grey",
    "LA": "grey with alpha",
    "I": "32-bit or 16-bit grey",
    "I;16": "16-bit grey",
    "I;16B": "16-bit grey, big-endian",
    "P": "palette",
    "RGBA": "RGB with alpha",
}
_SUMMARIES: dict[Level, str] = {
    "ok": "these images are ready for training",
    "look": "training would work; look at the points above first",
    "stop": "fix the points marked stop before training",
}


def print_page(report: Report, console: Console) -> None:
    """Print a report for people to read."""
    from rich.padding import Padding
    from rich.text import Text

    count = f"{report.images:,} images"
    if report.examined < report.images:
        count += f"; an evenly spaced sample of {report.examined:,} was examined (--limit)"
    blocks: list[RenderableType] = [
        Text.assemble((printable(report.name), "bold"), f": {count}; read and compared in {report.seconds:.1f} s"),
        _named_rows(_facts(report)),
        _findings(report),
    ]
    if report.estimate is not None:
        rows = _cost(report.estimate, report.recipe or "")
        blocks.append(_named_rows(rows, title="Estimated cost on this machine"))
    for block in blocks:
        console.print(block, highlight=False)
        console.print()
    if (suggestion := report.suggestion) is not None:
        console.print(f"[bold]Suggested recipe:[/] {suggestion.recipe}", highlight=False)
        for reason in suggestion.reasons:
            console.print(Padding(Text(f"because {reason}"), (0, 0, 0, 2)))
        # The command is neither wrapped nor coloured, so that it can be copied.
        console.print(f"\n  {printable(suggestion.command)}", highlight=False, markup=False, soft_wrap=True)


def _grid(rows: Iterable[Iterable[RenderableType]], *columns: dict[str, Any], gap: int = 2) -> Table:
    """Table without lines. Strings become Text, because rich would read brackets in file names as markup."""
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, gap))
    for column in columns:
        table.add_column(**column)
    for row in rows:
        table.add_row(*(Text(printable(cell)) if isinstance(cell, str) else cell for cell in row))
    return table


def _named_rows(rows: Iterable[tuple[str, RenderableType]], title: str | None = None) -> Table:
    table = _grid(rows, {"no_wrap": True, "style": "dim", "min_width": 12}, {"overflow": "fold"})
    table.title, table.title_justify, table.title_style = title, "left", "bold"
    return table


def _facts(report: Report) -> Iterator[tuple[str, RenderableType]]:
    about = report.contents
    if about is not None:
        yield "formats", _counts(about.formats)
        yield "colours", _counts({_MODES.get(mode, mode): count for mode, count in about.modes.items()})
        which = "in all" if report.examined == report.images else "in those examined"
        yield "size", f"{data_size(about.total_bytes)} {which}"
        yield "", _ranges(about)
        yield "shape", _bars(about.aspects)
    if (found := report.classes) is not None:
        each = f"{found.smallest:,}" if found.smallest == found.largest else f"{found.smallest:,} to {found.largest:,}"
        rest = f"; {found.unlabelled:,} without a label" if found.unlabelled else ""
        yield "classes", f"{found.classes:,}, with {each} images each{rest}"
    counts = report.ignored | ({"hidden": report.hidden} if report.hidden else {})
    if counts:
        others = ", ".join(f"{count:,} {suffix or 'without suffix'}" for suffix, count in counts.items())
        yield "other files", f"{others}: ignored"
    if (pixels := report.statistics) is not None:
        mean, std = (" ".join(f"{value:.3f}" for value in values) for values in (pixels.mean, pixels.std))
        yield "channels", f"mean {mean}, std {std} (in [0, 1], of {pixels.images} images)"
    if (rate := report.decode) is not None:
        threads = "1 thread" if rate.threads == 1 else f"{rate.threads} threads"
        yield "decoding", f"{rate.value:,.0f} images/s on {threads}, from files that are in memory already"
    if (rate := report.views) is not None:
        yield "views", f"{rate.value:,.0f} views/s with the recipe {report.recipe}"
    if report.preview is not None:
        yield "preview", report.preview


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())


def _ranges(about: Contents) -> Table:
    sides: dict[str, Range] = {"width": about.width, "height": about.height, "shorter side": about.shorter_side}
    rows = [[name, f"{side.min:,}", f"{side.median:,}", f"{side.max:,} px"] for name, side in sides.items()]
    rows.append(["bytes each", *(data_size(value) for value in (about.bytes.min, about.bytes.median, about.bytes.max))])
    right = {"justify": "right"}
    table = _grid([["", "min", "median", "max"], *rows], {}, right, right, right, gap=3)
    table.rows[0].style = "dim"
    return table


def _bars(counts: Mapping[str, int]) -> Table:
    most = max(counts.values())
    rows = [
        (ASPECTS[name][1], f"{count:,}", "█" * max(1, round(_BAR * count / most)))
        for name, count in counts.items()
        if count
    ]
    return _grid(rows, {}, {"justify": "right"}, {"style": "cyan"}, gap=3)


def _findings(report: Report) -> Table:
    from rich.text import Text

    rows: list[tuple[RenderableType, RenderableType]] = []
    for finding in report.findings:
        rows.append((Text(_WORDS[finding.level], style=_STYLES[finding.level]), finding.text))
        if finding.advice:
            rows.append(("", Text(printable(finding.advice), style="italic")))
        rows += [("", Text(f"  {printable(example)}", style="dim")) for example in _examples(finding, report)]
    rows.append(("", ""))
    summary = _SUMMARIES[report.verdict]
    if report.verdict == "look" and report.images < FAR_TOO_FEW:
        summary = "training would work, but so few images teach a network nothing of use"
    rows.append((Text("verdict", style="bold"), Text(summary, style=_STYLES[report.verdict])))
    return _grid(rows, {"no_wrap": True, "min_width": 12}, {"overflow": "fold"})


def _examples(finding: Finding, report: Report) -> list[str]:
    """Lines that name the first images that a finding is about."""
    contents = report.contents
    images: dict[str, Sequence[Unreadable | Copies | Leak | str]] = {
        "blank": contents.blank if contents is not None else [],
        "misnamed": contents.misnamed if contents is not None else [],
        "unreadable": report.unreadable,
        "exact_copies": report.exact_copies,
        "near_copies": report.near_copies,
        "leakage": report.against.leaked if report.against is not None else [],
    }
    found = images.get(finding.topic, [])
    more = [f"and {len(found) - _SHOWN:,} more; --json FILE lists all"] if len(found) > _SHOWN else []
    return [_example(image) for image in found[:_SHOWN]] + more


def _example(image: Unreadable | Copies | Leak | str) -> str:
    if isinstance(image, str):
        return image
    if isinstance(image, Unreadable):
        return f"{image.id}: {image.reason}"
    if isinstance(image, Leak):
        return f"{image.id} {'=' if image.exact else '≈'} {image.twin}"
    more = f", and {len(image.copies) - _SHOWN:,} more" if len(image.copies) > _SHOWN else ""
    return f"{image.first}: {', '.join(image.copies[:_SHOWN])}{more}"


def _cost(cost: Estimate, recipe: str) -> Iterator[tuple[str, str]]:
    total, step = cost.seconds, cost.step_seconds
    yield "recipe", f"{recipe}: {cost.steps:,} steps of {cost.batch_size} images x {cost.views} views"
    yield "machine", f"{cost.device} in {cost.precision}"
    yield "time", f"about {duration(total.median)} (from {duration(total.low)} to {duration(total.high)})"
    yield "memory", f"about {data_size(cost.memory_bytes)} at its peak, of {data_size(cost.memory_available)}"
    yield "disk", f"{data_size(cost.disk_bytes)} or more for checkpoints, of {data_size(cost.disk_available)} free here"
    each = f"{step.median:.3g} s a step ({step.low:.3g} to {step.high:.3g})"
    scaled = "" if cost.batch_measured == cost.batch_size else f" of {cost.batch_measured} images, scaled up"
    scaled += f", compiled in {cost.compile_seconds:.0f} s" if cost.compile_seconds else ""
    yield "measured", f"{each} over {cost.steps_measured} steps{scaled}; other work on the machine makes it slower"
