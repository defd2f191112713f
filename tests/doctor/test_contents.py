"""Formats, sizes, shapes and classes of images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ssole.data.arrays import ArraySource
from ssole.data.folder import FolderSource
from ssole.doctor.contents import ASPECTS, Classes, Contents, Range, classes, contents
from ssole.doctor.scan import Header, Readable, scan


def of(*sizes: tuple[int, int]) -> Contents:
    """Contents of images with these widths and heights."""
    thumbnail = np.zeros((16, 16), dtype=np.uint8)
    headers = [Header("PNG", "RGB", w, h, 10 * i) for i, (w, h) in enumerate(sizes)]
    return contents([Readable(i, f"{i}", header, b"", 0, thumbnail, False) for i, header in enumerate(headers)])


def test_sizes_are_summarised() -> None:
    found = of((100, 50), (30, 60), (20, 10))
    assert found.width == Range(min=20, median=30, max=100)
    assert found.height == Range(min=10, median=50, max=60)
    assert found.shorter_side == Range(min=10, median=30, max=50)
    assert found.bytes == Range(min=0, median=10, max=20)
    assert found.total_bytes == 30
    assert not found.one_size
    assert of((8, 9), (8, 9)).one_size
    assert not of((8, 9), (9, 8)).one_size


@pytest.mark.parametrize(
    ("size", "shape"),
    [
        ((100, 300), "tall"),
        ((1080, 1920), "portrait_2_3"),
        ((200, 300), "portrait_2_3"),
        ((300, 400), "portrait_3_4"),
        ((99, 100), "square"),
        ((32, 32), "square"),
        ((400, 300), "landscape_4_3"),
        ((300, 200), "landscape_3_2"),
        ((1920, 1080), "landscape_3_2"),
        ((10_000, 1), "wide"),
    ],
)
def test_shapes(size: tuple[int, int], shape: str) -> None:
    assert of(size).aspects == {name: int(name == shape) for name in ASPECTS}


def test_every_image_has_a_shape_and_turning_it_mirrors_it() -> None:
    on_a_bound = (5.0, 7.0, 9.0)  # tenths
    pairs = [(w, h) for w in range(1, 40, 3) for h in range(1, 40, 3)]
    sizes = [(w, h) for w, h in pairs if 10 * min(w, h) / max(w, h) not in on_a_bound]
    shapes = of(*sizes).aspects
    assert sum(shapes.values()) == len(sizes)
    assert list(shapes.values()) == list(of(*[(h, w) for w, h in sizes]).aspects.values())[::-1]


def test_formats_names_and_blank_images(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    photo = Image.fromarray(random.integers(0, 256, (20, 20, 3), dtype=np.uint8))
    photo.save(tmp_path / "a.jpg")
    photo.save(tmp_path / "b.jpeg")
    photo.save(tmp_path / "c.png", "JPEG")
    photo.save(tmp_path / "d.jpg", "MPO", save_all=True, append_images=[photo])  # as many cameras do
    photo.save(tmp_path / "e.tif")
    Image.new("RGB", (20, 20), "blue").save(tmp_path / "f.png")
    found = contents(scan(FolderSource(tmp_path), range(6), progress=False).readable)
    assert found.formats == {"JPEG": 3, "MPO": 1, "TIFF": 1, "PNG": 1}
    assert list(found.formats) == ["JPEG", "MPO", "TIFF", "PNG"]
    assert found.modes == {"RGB": 6}
    assert found.misnamed == ["c.png"]
    assert found.blank == ["f.png"]


def test_classes_are_counted() -> None:
    images = np.zeros((6, 1, 1), dtype=np.uint8)
    found = classes(ArraySource(images, np.array([3, 3, 3, 0, -1, -1])))
    assert found == Classes(classes=2, smallest=1, largest=3, unlabelled=2)
    assert classes(ArraySource(images)) is None
    assert classes(ArraySource(images, np.full(6, -1))) is None
