"""Examination of a data set: the order in which `ssole doctor` reads, compares and measures."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ssole.config import ConfigError, PretrainConfig, ViewRecipe, apply_overrides, load
from ssole.data.base import Source, Spec, evenly_spaced
from ssole.data.sources import open_source, open_test_images
from ssole.doctor.contents import classes, contents, exact_copies, leaks, near_copies
from ssole.doctor.estimate import estimate
from ssole.doctor.findings import (
    check_contents,
    check_duplicates,
    check_estimate,
    check_leakage,
    check_readable,
    check_recipe,
    check_statistics,
    share_to_allow,
)
from ssole.doctor.report import Finding, Report, SecondSet
from ssole.doctor.scan import Readable, Sample, draw_sample, scan, view_rate
from ssole.doctor.suggest import Suggestion, suggest
from ssole.errors import DataError
from ssole.files import write_atomically
from ssole.memory import free_memory
from ssole.progress import spinner
from ssole.runtime import resolve_device

LIMIT = 100_000
_ROWS = 6  # images of the preview


def examine(
    data: Spec,
    *,
    against: Spec | None = None,
    recipe: str | None = None,
    channels: int | None = None,
    device: torch.device | str = "auto",
    limit: int = LIMIT,
    preview: Path | None = None,
    measure: bool = True,
    progress: bool = True,
) -> Report:
    """Report on images before training. It changes no image, and unreadable images do not stop it.

    Args:
        data: as for :func:`ssole.pretrain`. Beside each tar, its index is kept, as by training.
        against: a second set, such as test images, which should share no image with the first.
        recipe: recipe whose cost is estimated (a name, or a YAML file); by default the suggested one.
        channels: number of channels of images that are not photographs; by default that of the recipe.
        device: `auto`, `cpu`, `cuda` or `cuda:N`, for the suggestion and the estimate.
        limit: largest number of images to read of each set, evenly spaced over it.
        preview: PNG file to write, with a grid of images and their views.
        measure: whether to run a few training steps for the estimate.
        progress: whether to show progress bars on a terminal.

    Raises:
        DataError: there are no images, or the preview cannot be written.
        ConfigError: no such recipe or device.
    """
    if limit < 2:
        raise ConfigError(f"limit is a number of images, at least 2; got {limit}")
    device = resolve_device(device)
    config = None if recipe is None else load(recipe, **({} if channels is None else {"channels": channels}))
    channels = channels if config is None else config.channels
    if preview is not None:
        _check_preview_path(preview)
    source, images, report = _read(data, against, channels, config, limit, progress)
    if report.contents is None:
        return report
    with spinner("measuring decoding, views and training steps", enabled=progress):
        suggestion = _suggestion(data, report, device, channels)
        config = config or suggestion.config
        sample = draw_sample(source, images, shrink_to=config.augment.useful_size, channels=config.channels)
        report = dataclasses.replace(report, suggestion=suggestion, recipe=recipe or suggestion.recipe)
        report = _measure(report, sample, config, device, measure, source.labels)
    if preview is not None:
        _save_preview(preview, sample, config.augment, seed=config.seed)
        report = dataclasses.replace(report, preview=str(preview))
    return report


def _suggestion(data: Spec, report: Report, device: torch.device, channels: int | None) -> Suggestion:
    """Suggestion that allows as many unreadable images as were found."""
    assert report.contents is not None
    allow = share_to_allow(len(report.unreadable), report.examined, PretrainConfig.max_unreadable)
    free = free_memory(device)
    return suggest(data, report.contents, report.images, device, channels=channels, memory=free, max_unreadable=allow)


def _read(
    data: Spec, against: Spec | None, channels: int | None, config: PretrainConfig | None, limit: int, progress: bool
) -> tuple[Source, list[Readable], Report]:
    """Source of the images, records of the readable ones, and a report that lacks what is measured afterwards."""
    begin = time.perf_counter()
    source = open_source(data, split="train")
    second = None if against is None else open_test_images(against)
    if len(source) == 0:
        raise DataError(f"{source.name} holds no images.")
    found = scan(source, evenly_spaced(len(source), limit), progress=progress, channels=channels)
    exact, near = exact_copies(found.readable), near_copies(found.readable, progress=progress)
    compared = None
    if second is not None:
        others = scan(second, evenly_spaced(len(second), limit), progress=progress, channels=channels)
        compared = SecondSet(
            name=second.name,
            images=len(second),
            examined=others.examined,
            unreadable=others.unreadable,
            leaked=leaks(found.readable, others.readable, progress=progress),
        )
    seconds = time.perf_counter() - begin
    about = contents(found.readable) if found.readable else None
    tolerated = PretrainConfig.max_unreadable if config is None else config.max_unreadable
    findings = [check_readable(len(source), found.examined, found.unreadable, max_unreadable=tolerated)]
    if source.why_unlabelled is not None:
        advice = "mend that, if you want to measure accuracies; learning needs no labels"
        findings.append(Finding("look", "labels", f"there are no labels: {source.why_unlabelled}", advice))
    if about is not None:
        findings += check_duplicates(exact, near, len(source), found.examined)
        findings += check_contents(about, found.examined)
        findings += [] if compared is None else [check_leakage(compared, len(source), found.examined)]
    report = Report(
        name=source.name,
        images=len(source),
        examined=found.examined,
        seconds=seconds,
        unreadable=found.unreadable,
        ignored=dict(source.ignored),
        hidden=source.hidden,
        classes=classes(source),
        contents=about,
        exact_copies=exact,
        near_copies=near,
        against=compared,
        findings=findings,
    )
    return source, found.readable, report


def with_normalisation(config: PretrainConfig, sample: Sample) -> PretrainConfig:
    """Config with mean and std measured on the sample if the recipe leaves them open; a run refuses a std of 0."""
    if config.augment.mean is not None:
        return config
    std = [max(value, 0.001) for value in sample.statistics.std]  # blank images have no deviation to divide by
    return apply_overrides(config, {"augment.mean": sample.statistics.mean, "augment.std": std})


def _measure(
    report: Report,
    sample: Sample,
    config: PretrainConfig,
    device: torch.device,
    measure: bool,
    labels: NDArray[np.int64] | None,
) -> Report:
    """Report with the costs of a recipe: speed of decoding and views, and time and memory if `measure` is true."""
    assert report.contents is not None
    assert report.recipe is not None
    readable = report.images - len(report.unreadable)
    findings = [*report.findings, *check_statistics(sample.statistics, config.augment, readable)]
    findings += check_recipe(config, report.recipe, report.contents, report.images)
    config = with_normalisation(config, sample)
    cost = None
    if measure and report.images >= config.batch_size:
        cost = estimate(config, sample, report.contents, report.images, device, labels=labels)
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
    """Check, before anything is read, that the path is that of a PNG file in a folder that exists."""
    if path.suffix.lower() != ".png":
        raise DataError(f"the preview is a PNG file, and {str(path)!r} has another suffix: name it {path.stem}.png")
    if not path.absolute().parent.is_dir():
        raise DataError(f"there is no folder {path.absolute().parent} for the preview")


def _save_preview(path: Path, sample: Sample, recipe: ViewRecipe, *, seed: int) -> None:
    """Write a picture of some images and their views."""
    from ssole.views.picture import picture

    sheet = picture(sample.images[:_ROWS], sample.ids[:_ROWS], recipe=recipe, seed=seed)
    write_atomically(path, lambda temporary: sheet.save(temporary, "PNG"))
