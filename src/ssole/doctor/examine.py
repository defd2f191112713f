"""All of the doctor's work, in order."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from ssole.config import ConfigError, PretrainConfig, apply_overrides, from_dict, load_recipe
from ssole.data.base import Source, Spec
from ssole.data.sources import open_source
from ssole.doctor.alike import Group, exact_copies, leaks, near_copies
from ssole.doctor.contents import Contents, classes, contents
from ssole.doctor.estimate import Estimate, estimate
from ssole.doctor.findings import (
    about_contents,
    about_copies,
    about_estimate,
    about_leakage,
    about_reading,
    about_recipe,
)
from ssole.doctor.preview import check_preview_name, save_preview
from ssole.doctor.report import Against, Copies, Finding, Leaked, Report
from ssole.doctor.sample import Rate, Sample, draw_sample, view_rate
from ssole.doctor.scan import Scan, chosen, scan
from ssole.doctor.suggest import Suggestion, suggest
from ssole.errors import DataError
from ssole.progress import spinner
from ssole.runtime import resolve_device

LIMIT = 100_000


def examine(
    data: Spec,
    *,
    against: Spec | None = None,
    recipe: str | None = None,
    device: str = "auto",
    limit: int = LIMIT,
    preview: Path | None = None,
    measure: bool = True,
    progress: bool = True,
) -> Report:
    """Look at images before training on them. Nothing is changed, and images that cannot be read do not end it.

    Args:
        data: as for :func:`ssole.pretrain`.
        against: a second set, such as test images, which should share none with the first.
        recipe: a shipped recipe's name or a YAML file, to estimate the cost of; by default the one suggested.
        device: `auto`, `cpu`, `cuda` or `cuda:N`; what the suggestion and the estimate are for.
        limit: images to look at, of each set; of more than that, so many spread evenly.
        preview: write a grid of views to this PNG file.
        measure: run a few training steps, for the estimate.
        progress: show progress bars on a terminal.

    Raises:
        DataError: there are no images to look at.
        ConfigError: no such recipe or device.
    """
    if limit < 2:
        raise ConfigError(f"limit is a number of images, at least 2; got {limit}")
    place = resolve_device(device)
    channels = None if recipe is None else from_dict(load_recipe(recipe)).channels
    if preview is not None:
        check_preview_name(preview)
    begin = time.perf_counter()
    source = open_source(data, split="train")
    other = None if against is None else _second(against)
    if len(source) == 0:
        raise DataError(f"{source.name} holds no images.")
    found = scan(source, chosen(len(source), limit), progress=progress, channels=channels)
    exact = _named(source, exact_copies(found.seen))
    near = _named(source, near_copies(found.seen, progress=progress))
    compared = None if other is None else _compare(source, found, other, limit, channels, progress)
    seconds = time.perf_counter() - begin
    about = contents(source, found.seen) if found.seen else None
    with spinner("measuring decoding, views and training steps", enabled=progress):
        fit = None if about is None else _fit(data, source, found, about, recipe, place, measure)
    if fit is not None and preview is not None:
        save_preview(preview, fit.sample, fit.config.augment, seed=fit.config.seed)
    return _report(source, found, seconds, (exact, near), about, compared, fit, preview)


@dataclass(frozen=True, kw_only=True)
class _Fit:
    """How images, recipe and machine go together."""

    suggestion: Suggestion
    name: str
    config: PretrainConfig
    sample: Sample
    views: Rate
    estimate: Estimate | None
    findings: list[Finding]


def _fit(
    data: Spec,
    source: Source,
    found: Scan,
    about: Contents,
    recipe: str | None,
    device: torch.device,
    measure: bool,
) -> _Fit:
    images = len(source)
    suggestion = suggest(data, about, images, device)
    config = suggestion.config if recipe is None else from_dict(load_recipe(recipe))
    sample = draw_sample(source, found.seen, shrink_to=config.augment.useful_size, channels=config.channels)
    suggestion = suggest(data, about, images, device, sample.statistics)  # what it sees may change the colours only
    config = suggestion.config if recipe is None else config
    if config.augment.mean is None:  # as a run does, with the images' own; blank ones have no deviation to divide by
        std = [max(value, 0.001) for value in sample.statistics.std]
        config = apply_overrides(config, {"augment.mean": sample.statistics.mean, "augment.std": std})
    name = recipe or suggestion.recipe
    findings = list(about_recipe(config, name, about, images))
    cost = None
    if measure and images >= config.batch_size:
        cost = estimate(config, sample, about, images, device)
        findings += about_estimate(cost, sample.decode, name)
    views = view_rate(sample, config.augment, device)
    return _Fit(
        suggestion=suggestion, name=name, config=config, sample=sample, views=views, estimate=cost, findings=findings
    )


def _second(against: Spec) -> Source:
    """What was given as the second set: its test split, or all of it where it has no splits."""
    try:
        other = open_source(against, split="test")
    except DataError:
        other = open_source(against, split="train")
    return other


def _compare(source: Source, found: Scan, other: Source, limit: int, channels: int | None, progress: bool) -> Against:
    second = scan(other, chosen(len(other), limit), progress=progress, channels=channels)
    leaked = leaks(found.seen, second.seen, progress=progress)
    return Against(
        name=other.name,
        images=len(other),
        examined=len(second.seen) + len(second.unreadable),
        unreadable=second.unreadable,
        leaked=[Leaked(other.id(leak.index), source.id(leak.twin), leak.exact) for leak in leaked],
    )


def _named(source: Source, groups: Iterable[Group]) -> list[Copies]:
    return [Copies(source.id(group.first), [source.id(i) for i in group.copies]) for group in groups]


def _report(
    source: Source,
    found: Scan,
    seconds: float,
    copies: tuple[list[Copies], list[Copies]],
    about: Contents | None,
    against: Against | None,
    fit: _Fit | None,
    preview: Path | None,
) -> Report:
    exact, near = copies
    examined = len(found.seen) + len(found.unreadable)
    findings = [about_reading(len(source), examined, found.unreadable)]
    if about is not None:
        findings += about_copies(exact, near, examined)
        findings += about_contents(about, examined)
    if against is not None and about is not None:
        findings.append(about_leakage(against))
    report = Report(
        name=source.name,
        images=len(source),
        examined=examined,
        seconds=seconds,
        unreadable=found.unreadable,
        ignored=dict(getattr(source, "ignored", {})),  # folders count the other files that they hold
        classes=classes(source),
        contents=about,
        exact_copies=exact,
        near_copies=near,
        against=against,
        findings=findings,
    )
    return report if fit is None else _with(report, fit, preview)


def _with(report: Report, fit: _Fit, preview: Path | None) -> Report:
    return dataclasses.replace(
        report,
        statistics=fit.sample.statistics,
        decode=fit.sample.decode,
        views=fit.views,
        suggestion=fit.suggestion,
        recipe=fit.name,
        estimate=fit.estimate,
        preview=None if preview is None else str(preview),
        findings=report.findings + fit.findings,
    )
