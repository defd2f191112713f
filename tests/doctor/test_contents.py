"""Formats, sizes, shapes and classes of images; exact copies, near copies, and pictures that are only similar."""

from __future__ import annotations

import dataclasses
import io
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from ssole.data.arrays import ArraySource
from ssole.data.folder import FolderSource
from ssole.doctor.contents import (
    ASPECTS,
    MAX_BITS,
    MIN_CORRELATION,
    Classes,
    Contents,
    Copies,
    Leak,
    NearCopySearch,
    Range,
    classes,
    contents,
    exact_copies,
    leaks,
    near_copies,
)
from ssole.doctor.scan import Header, Readable, scan, scan_image

Picture = NDArray[np.uint8]


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
        ((64, 32), "landscape_3_2"),  # as long as twice the height, and not beyond
        ((32, 64), "portrait_2_3"),
        ((65, 32), "wide"),
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
    checkered = np.indices((256, 256)).sum(0) % 2 * 255  # one grey where it is reduced
    Image.fromarray(checkered.astype(np.uint8)).save(tmp_path / "g.png")
    found = contents(scan(FolderSource(tmp_path), range(7), progress=False).readable)
    assert found.formats == {"JPEG": 3, "PNG": 2, "MPO": 1, "TIFF": 1}
    assert found.modes == {"RGB": 6, "L": 1}
    assert found.misnamed == ["c.png"]
    assert found.blank == ["f.png"]


def test_classes_are_counted() -> None:
    images = np.zeros((6, 1, 1), dtype=np.uint8)
    found = classes(ArraySource(images, np.array([3, 3, 3, 0, -1, -1])))
    assert found == Classes(classes=2, smallest=1, largest=3, unlabelled=2)
    assert classes(ArraySource(images)) is None
    assert classes(ArraySource(images, np.full(6, -1))) is None


# Copies


def records(*pictures: Picture) -> list[Readable]:
    """Records of the pictures, with ids counted from 0."""
    found = [scan_image(ArraySource(picture[None]), 0) for picture in pictures]
    return [dataclasses.replace(one, index=i, id=str(i)) for i, one in enumerate(found) if isinstance(one, Readable)]


def reencoded(picture: Picture, quality: int = 50) -> Picture:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


def halved(picture: Picture) -> Picture:
    image = Image.fromarray(picture)
    return np.asarray(image.resize((image.width // 2, image.height // 2)))


def brighter(picture: Picture) -> Picture:
    return np.asarray(ImageEnhance.Brightness(Image.fromarray(picture)).enhance(1.2))


def flatter(picture: Picture) -> Picture:
    return np.asarray(ImageEnhance.Contrast(Image.fromarray(picture)).enhance(0.7))


def grey(picture: Picture) -> Picture:
    return np.asarray(Image.fromarray(picture).convert("L"))


def cropped(picture: Picture) -> Picture:
    return np.ascontiguousarray(picture[1:-1, 1:-1])


def test_exact_copies_are_grouped(pictures: list[Picture]) -> None:
    a, b, c = pictures[:3]
    assert exact_copies(records(a, b, a, c, b, a)) == [Copies("0", ["2", "5"]), Copies("1", ["4"])]
    assert exact_copies(records(a, b, c)) == []
    assert exact_copies(records(a, brighter(a))) == []


@pytest.mark.parametrize("change", [reencoded, halved, brighter, flatter, grey, cropped])
def test_changed_copies_look_the_same(change: Callable[[Picture], Picture], pictures: list[Picture]) -> None:
    for picture in pictures:
        assert near_copies(records(picture, change(picture))) == [Copies("0", ["1"])]


def test_different_pictures_do_not(pictures: list[Picture]) -> None:
    assert near_copies(records(*pictures)) == []
    turned = [np.ascontiguousarray(picture[::-1]) for picture in pictures]
    assert near_copies(records(*pictures, *turned)) == []


def test_exact_copies_are_not_near_copies_too(pictures: list[Picture]) -> None:
    a, b = pictures[:2]
    assert near_copies(records(a, a, b, b)) == []
    assert near_copies(records(a, b, a, reencoded(a), b)) == [Copies("0", ["3"])]


def test_blank_images_are_not_near_copies() -> None:
    blank = [np.full((20, 20, 3), value, dtype=np.uint8) for value in range(0, 250, 10)]
    assert near_copies(records(*blank)) == []
    assert leaks(records(*blank), records(np.full((20, 20, 3), 3, dtype=np.uint8))) == []


def made_up(count: int, seed: int = 0) -> list[Readable]:
    """Hashes and thumbnails in loose clusters, so that many pairs lie on either side of both thresholds."""
    random = np.random.default_rng(seed)
    hashes = random.integers(0, 2**63, 12, dtype=np.uint64)
    images = random.integers(0, 256, (12, 16, 16)).astype(np.float64)
    found = []
    for index in range(count):
        of = index % len(hashes)
        flips = random.choice(64, random.integers(0, 8), replace=False)
        mask = int(sum(1 << int(bit) for bit in flips))
        noise = random.normal(0, random.uniform(5, 50), (16, 16))
        thumbnail = np.clip(images[of] + noise, 0, 255).astype(np.uint8)
        header = Header("PNG", "RGB", 32, 32, 100)
        digest, hash = f"{index:032x}", int(hashes[of]) ^ mask
        found.append(Readable(index, str(index), header, digest, hash, thumbnail, False))
    return found


def near(a: Readable, b: Readable) -> bool:
    """Definition of near copies, with Python's integers and NumPy's own correlation."""
    if (a.hash ^ b.hash).bit_count() > MAX_BITS:
        return False
    return bool(np.corrcoef(a.thumbnail.ravel(), b.thumbnail.ravel())[0, 1] >= MIN_CORRELATION)


def test_near_agrees_with_its_definition() -> None:
    found = made_up(150)
    search = NearCopySearch(found)
    hits = 0
    for one in found:
        expected = [j for j, other in enumerate(found) if near(one, other)]
        assert sorted(search.near(one)) == expected
        assert sorted(search.near(one, start=70)) == [j for j in expected if j >= 70]
        hits += len(expected)
    assert 300 < hits < 1500  # neither all of the 12 per cluster nor none


def test_the_most_similar_comes_first(pictures: list[Picture]) -> None:
    a = pictures[0]
    variants = records(flatter(reencoded(a, 5)), reencoded(a, 95), reencoded(a, 20))
    assert NearCopySearch(variants).near(records(a)[0])[0] == 1


def test_without_the_copies_no_two_images_are_near() -> None:
    found = made_up(200, seed=1)
    groups = near_copies(found)
    copies = {i for group in groups for i in group.copies}
    firsts = {group.first for group in groups}
    assert groups
    assert not copies & firsts
    kept = [one for one in found if one.id not in copies]
    assert not [1 for k, a in enumerate(kept) for b in kept[k + 1 :] if near(a, b)]
    pairs = [(int(group.first), int(copy)) for group in groups for copy in group.copies]
    assert all(near(found[i], found[j]) and j > i for i, j in pairs)


def test_leaks_name_the_twin_and_prefer_the_exact_one(pictures: list[Picture]) -> None:
    train = records(*pictures[:6], reencoded(pictures[1]))
    test = records(pictures[8], pictures[1], reencoded(pictures[2]), pictures[9])
    assert leaks(train, test) == [Leak("1", "1", exact=True), Leak("2", "2", exact=False)]
    assert leaks(train, records(*pictures[6:])) == []
    assert leaks([], test) == []


def test_many_images_that_all_look_the_same_are_compared_quickly() -> None:
    """Comparing all pairs of 20,000 images would be 200 million comparisons."""
    one = made_up(1)[0]
    many = [dataclasses.replace(one, index=i, id=str(i), digest=f"{i:032x}") for i in range(20_000)]
    begin = time.perf_counter()
    (group,) = near_copies(many)
    assert group.first == "0"
    assert len(group.copies) == 19_999
    assert time.perf_counter() - begin < 20  # seconds; it takes a fraction of one
