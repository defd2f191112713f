"""A trained run on images of two classes, and its index; made once, because that takes seconds."""

from __future__ import annotations

from pathlib import Path

import pytest

import ssole
import tiny
from ssole.search.index import Index
from ssole.training.run import Run


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_folder(tmp_path_factory.mktemp("search") / "photos", 30)


@pytest.fixture(scope="session")
def run(photos: Path) -> Run:
    return tiny.start(photos.parent / "run", data=str(photos), steps=2)


@pytest.fixture(scope="session")
def index(run: Run, photos: Path) -> Index:
    return ssole.index(run, photos, photos.parent / "index", precision="float32", progress=False)
