"""A run with hostile names, evaluated, and its report; made once, because that takes seconds."""

from __future__ import annotations

import csv
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import ssole
import tiny
from ssole.training.run import Run


@pytest.fixture(scope="session")
def sections() -> frozenset[str]:
    """Ids of all sections of the page."""
    names = "accuracy training views neighbours map spectrum confusions outliers cost repeat"
    return frozenset(names.split())


@pytest.fixture(scope="session")
def hostile_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Evaluated run on 60 images with markup in the names of the run, its classes and its files."""
    pytest.importorskip("bokeh", reason="the extra report is not installed")
    root = tmp_path_factory.mktemp("report")
    classes = ("<script>alert(1)<", "b<img src=x onerror=alert(2)>")
    tiny.write_folder(root / "images", 60, classes=classes)
    for number, path in enumerate(sorted((root / "images").rglob("*.png"))[:10]):
        path.rename(path.with_name(f"{number}<script>alert(3)<&\"'`{{{{ 7*7 }}}}.png"))
    run = tiny.start(root / "<b onclick=alert(4)>run", data=str(root / "images"), steps=4)
    ssole.evaluate(run, root / "images", protocol="knn", progress=False).save(run.path / "evaluation.json")
    return run


@pytest.fixture(scope="session")
def page(hostile_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Report of that run, with a column of further hostile names for the map."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("page")
    ids = ssole.embed(hostile_run, hostile_run.config.data, progress=False).ids
    with (folder / "columns.csv").open("w", newline="", encoding="utf-8") as file:
        rows = [(name, "<script>alert(6)</script>" if number % 2 else "") for number, name in enumerate(ids)]
        csv.writer(file).writerows([("id", "<img src=x onerror=alert(5)>"), *rows])
    return ssole.report(hostile_run, columns=folder / "columns.csv", out=folder / "report.html", progress=False)


BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium, if there is one."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (the extra browser)")
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is installed")
    arguments = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []  # root has no sandbox
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=arguments)
        yield started
        started.close()
