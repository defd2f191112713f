"""Examination of a data set: the order in which `ssole doctor` reads, compares and measures."""

from __future__ import annotations

import dataclasses
import io
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from ssole.config import ConfigError, PretrainConfig, ViewRecipe, apply_overrides, load
from ssole.data.base import Source, Spec, evenly_spaced
from ssole.data.sources import open_source
from ssole.doctor.contents import Contents, classes, contents
from ssole.doctor.duplicates import exact_copies, leaks, near_copies
from ssole.doctor.estimate import estimate
from ssole.doctor.findings import (
    check_contents,
    check_duplicates,
    check_estimate,
    check_leakage,
    check_readable,
    check_recipe,
)
from ssole.doctor.report import Report, SecondSet
from ssole.doctor.scan import Readable, Sample, Scan, draw_sample, scan, view_rate
from ssole.doctor.suggest import Suggestion, suggest
from ssole.errors import DataError
from ssole.files import write_bytes_atomically
from ssole.progress import spinner
from ssole.runtime import resolve_device

LIMIT = 100_000
_ROWS = 6  # images of the preview


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
    """Report on images before they are trained on. It changes nothing, and unreadable images do not stop it.

    Args:
        data: as for :func:`ssole.pretrain`.
        against: a second set, such as test images, which should have no image of the first.
        recipe: name of a shipped recipe, or a YAML file, whose cost is estimated; by default the suggested one.
        device: `auto`, `cpu`, `cuda` or `cuda:N`, for the suggestion and the estimate.
        limit: largest number of images read of each set; of a larger set, an evenly spaced sample is read.
        preview: PNG file to write, with a grid of images and their views.
        measure: whether to run a few training steps for the estimate.
        progress: whether to show progress bars on a terminal.

    Raises:
        DataError: there are no images, or the preview cannot be written there.
        ConfigError: no such recipe or device.
    """
    if limit < 2:
        raise ConfigError(f"limit is a number of images, at least 2; got {limit}")
    target = resolve_device(device)
    config = None if recipe is None else load(recipe)
    if preview is not None:
        _check_preview_path(preview)
    source, images, report = _read(data, against, PretrainConfig() if config is None else config, limit, progress)
    if report.contents is None:
        return report
    with spinner("measuring decoding, views and training steps", enabled=progress):
        suggestion, sample = _suggest(data, source, images, report.contents, target, config)
        config = _with_normalisation(suggestion.config if config is None else config, sample)
        report = dataclasses.replace(report, suggestion=suggestion, recipe=recipe or suggestion.recipe)
        report = _measure(report, sample, config, target, measure)
    if preview is not None:
        _save_preview(preview, sample, config.augment, seed=config.seed)
        report = dataclasses.replace(report, preview=str(preview))
    return report


def _read(
    data: Spec, against: Spec | None, config: PretrainConfig, limit: int, progress: bool
) -> tuple[Source, list[Readable], Report]:
    """Source of the images, records of the readable ones, and a report on all that reading and comparing shows."""
    begin = time.perf_counter()
    source = open_source(data, split="train")
    second = None if against is None else _open_second(against)
    if len(source) == 0:
        raise DataError(f"{source.name} holds no images.")
    found = scan(source, evenly_spaced(len(source), limit), progress=progress, channels=config.channels)
    exact, near = exact_copies(found.readable), near_copies(found.readable, progress=progress)
    compared = None if second is None else _compare(found, second, limit, config.channels, progress)
    seconds = time.perf_counter() - begin
    about = contents(found.readable) if found.readable else None
    findings = [check_readable(len(source), found.examined, found.unreadable, max_unreadable=config.max_unreadable)]
    if about is not None:
        findings += check_duplicates(exact, near, found.examined)
        findings += check_contents(about, found.examined)
        findings += [] if compared is None else [check_leakage(compared)]
    report = Report(
        name=source.name,
        images=len(source),
        examined=found.examined,
        seconds=seconds,
        unreadable=found.unreadable,
        ignored=dict(source.ignored),
        classes=classes(source),
        contents=about,
        exact_copies=exact,
        near_copies=near,
        against=compared,
        findings=findings,
    )
    return source, found.readable, report


def _open_second(against: Spec) -> Source:
    """Second set: its test split, or all of it if it has no splits."""
    try:
        return open_source(against, split="test")
    except DataError:
        return open_source(against, split="train")


def _compare(found: Scan, source: Source, limit: int, channels: int | None, progress: bool) -> SecondSet:
    second = scan(source, evenly_spaced(len(source), limit), progress=progress, channels=channels)
    return SecondSet(
        name=source.name,
        images=len(source),
        examined=second.examined,
        unreadable=second.unreadable,
        leaked=leaks(found.readable, second.readable, progress=progress),
    )


def _suggest(
    data: Spec,
    source: Source,
    images: Sequence[Readable],
    about: Contents,
    device: torch.device,
    config: PretrainConfig | None,
) -> tuple[Suggestion, Sample]:
    """Suggested recipe, and a sample decoded for the recipe asked for, or else for the suggested one."""
    suggestion = suggest(data, about, len(source), device)
    config = suggestion.config if config is None else config
    sample = draw_sample(source, images, shrink_to=config.augment.useful_size, channels=config.channels)
    # Statistics change only the colours of the suggestion, so the sample need not be decoded again.
    return suggest(data, about, len(source), device, sample.statistics), sample


def _with_normalisation(config: PretrainConfig, sample: Sample) -> PretrainConfig:
    """Config with the images' own mean and deviation where the recipe leaves them to be measured, as in a run."""
    if config.augment.mean is not None:
        return config
    std = [max(value, 0.001) for value in sample.statistics.std]  # blank images have no deviation to divide by
    return apply_overrides(config, {"augment.mean": sample.statistics.mean, "augment.std": std})


def _measure(report: Report, sample: Sample, config: PretrainConfig, device: torch.device, measure: bool) -> Report:
    """Report with what the recipe needs: speed of decoding and views and, if wanted, time and memory of training."""
    assert report.contents is not None
    assert report.recipe is not None
    findings = [*report.findings, *check_recipe(config, report.recipe, report.contents, report.images)]
    cost = None
    if measure and report.images >= config.batch_size:
        cost = estimate(config, sample, report.contents, report.images, device)
        findings += check_estimate(cost, sample.decode, report.recipe)
    return dataclasses.replace(
        report,
        statistics=sample.statistics,
        decode=sample.decode,
        views=view_rate(sample, config.augment, device),
        estimate=cost,
        findings=findings,
    )


def _check_preview_path(path: Path) -> None:
    """Raise a DataError, before anything is measured, unless a PNG file can be written there."""
    if path.suffix.lower() != ".png":
        raise DataError(f"the preview is a PNG file, and {str(path)!r} has another suffix: name it {path.stem}.png")
    if not path.absolute().parent.is_dir():
        raise DataError(f"there is no folder {path.absolute().parent} for the preview")


def _save_preview(path: Path, sample: Sample, recipe: ViewRecipe, *, seed: int) -> None:
    """Write a picture of some images of the sample and their views."""
    from ssole.views.picture import picture

    buffer = io.BytesIO()
    picture(sample.images[:_ROWS], sample.ids[:_ROWS], recipe=recipe, seed=seed).save(buffer, "PNG")
    write_bytes_atomically(path, buffer.getvalue())
