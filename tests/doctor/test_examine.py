"""Whole examinations: what is found, measured and suggested, the preview, and wrong input."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from examined import KEYS, damage, page, report_on
from numpy.typing import NDArray
from PIL import Image

import tiny
from ssole.config import ConfigError, Crop, ViewRecipe, recipe_names
from ssole.data.arrays import ArraySource
from ssole.data.folder import FolderSource
from ssole.doctor import Report, examine
from ssole.doctor.examine import _save_preview
from ssole.doctor.scan import draw_sample, scan
from ssole.errors import DataError

pytestmark = pytest.mark.usefixtures("soon")


def levels(report: Report) -> dict[str, str]:
    return {finding.topic: finding.level for finding in report.findings}


def test_a_damaged_folder(folder: Path) -> None:
    report = report_on(damage(folder))
    assert (report.images, report.examined) == (16, 16)
    assert [one.id for one in report.unreadable] == ["[bold]empty.jpg"]
    assert [(c.first, c.copies) for c in report.exact_copies] == [("00.png", ["copy of 00.png"])]
    assert [{c.first, *c.copies} for c in report.near_copies] == [{"01 again.jpg", "01.png"}]
    assert report.contents is not None
    assert report.contents.blank == ["blank.png"]
    assert report.contents.formats == {"PNG": 14, "JPEG": 1}
    assert (report.ignored, report.hidden) == ({".txt": 1}, 1)
    found = levels(report)
    assert {found[topic] for topic in ("unreadable", "exact_copies", "near_copies", "blank", "few")} == {"look"}
    assert report.verdict == "look"
    assert report.suggestion is not None
    assert report.suggestion.recipe in recipe_names()


def test_leakage(folder: Path, tmp_path: Path, pictures: list[NDArray[np.uint8]]) -> None:
    test = tmp_path / "test"
    test.mkdir()
    shutil.copy(folder / "03.png", test / "a.png")
    Image.fromarray(pictures[4]).save(test / "b.jpg", quality=70)
    Image.fromarray(np.ascontiguousarray(pictures[5][::-1])).save(test / "c.png")
    (test / "d.png").write_bytes(b"")
    report = report_on(folder, against=test)
    assert report.against is not None
    assert [(leak.id, leak.twin, leak.exact) for leak in report.against.leaked] == [
        ("a.png", "03.png", True),
        ("b.jpg", "04.png", False),
    ]
    assert (report.against.examined, len(report.against.unreadable)) == (4, 1)
    assert levels(report)["leakage"] == "stop"
    assert "a.png = 03.png" in page(report)
    assert "b.jpg ≈ 04.png" in page(report)


def test_the_second_set_is_the_test_split_where_there_is_one(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "both" / "train")
    (tmp_path / "both" / "test").mkdir()
    shutil.move(tmp_path / "both" / "train" / "00.png", tmp_path / "both" / "test")
    report = report_on(tmp_path / "both", against=tmp_path / "both")
    assert report.images == 11
    assert report.against is not None
    assert (report.against.images, report.against.leaked) == (1, [])


def test_nothing_but_broken_files(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(b"nothing")
    report = report_on(tmp_path, measure=True)
    assert report.verdict == "stop"
    assert report.contents is None
    assert report.estimate is None
    assert "cannot be read: 3 of 3 images (100 %)" in page(report)
    assert json.loads(report.to_json()).keys() == KEYS


def test_the_suggested_command_allows_the_unreadable_images(tmp_path: Path) -> None:
    data = tiny.write_folder(tmp_path / "images", 60)
    commands = []
    for name in ("cat/000", "cat/002", "dog/001"):
        (data / f"{name}.png").write_bytes(b"damaged")
        report = report_on(data)
        assert report.suggestion is not None
        commands.append(report.suggestion.command)
    assert "--max-unreadable" not in commands[0]  # one is allowed anyway
    assert "--max-unreadable 0.05" in commands[2]
    (finding,) = [one for one in report.findings if one.topic == "unreadable"]
    assert "--max-unreadable 0.05" in finding.advice


def test_arrays_and_sources_are_examined(pictures: list[NDArray[np.uint8]]) -> None:
    labels = np.array([0, 1] * 6)
    report = report_on(ArraySource(np.stack(pictures), labels, name="mine"))
    assert report.name == "mine"
    assert report.classes is not None
    assert report.classes.classes == 2
    assert report.contents is not None
    assert report.contents.formats == {"array": 12}
    assert report.suggestion is not None
    assert "--data DATA " in report.suggestion.command
    assert report_on(np.stack([*pictures, pictures[3]])).exact_copies[0].copies == ["array:12"]


def test_a_named_recipe_is_what_is_measured(folder: Path, tmp_path: Path) -> None:
    report = report_on(folder, recipe=tiny.recipe(tmp_path), measure=True)
    assert report.recipe == str(tmp_path / "tiny.yaml")
    assert report.estimate is not None
    assert (report.estimate.steps, report.estimate.batch_size) == (tiny.STEPS, 4)
    assert report.suggestion is not None
    assert report.suggestion.recipe == "photos-fast"


def test_a_batch_that_the_images_do_not_fill_stops(folder: Path) -> None:
    report = report_on(folder, recipe="cifar10-cpu", measure=True)
    assert levels(report)["too_few"] == "stop"
    assert report.estimate is None


def test_a_source_without_images_is_refused() -> None:
    class Nothing(ArraySource):
        def __len__(self) -> int:
            return 0

    with pytest.raises(DataError, match="nothing holds no images"):
        report_on(Nothing(np.zeros((1, 2, 2), dtype=np.uint8), name="nothing"))


def test_a_single_image_is_too_few(tmp_path: Path, pictures: list[NDArray[np.uint8]]) -> None:
    Image.fromarray(pictures[0]).save(tmp_path / "only.png")
    assert levels(report_on(tmp_path, measure=True))["too_few"] == "stop"


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"recipe": "cifar"}, ConfigError, "no recipe 'cifar'"),
        ({"limit": 1}, ConfigError, "limit is a number of images, at least 2; got 1"),
        ({"against": "no-such-folder"}, DataError, "no-such-folder"),
    ],
)
def test_wrong_input_is_refused(folder: Path, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        report_on(folder, **options)


# The preview


@pytest.mark.parametrize(
    ("name", "message"), [("views.jpg", "another suffix: name it views.png"), ("no/views.png", "there is no folder")]
)
def test_a_wrong_path_is_refused_before_anything_else(name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        examine("no such data", preview=tmp_path / name)


def test_the_picture_is_the_same_for_the_same_seed(folder: Path, tmp_path: Path) -> None:
    source = FolderSource(folder)
    sample = draw_sample(source, scan(source, range(len(source)), progress=False).readable, shrink_to=96)
    recipe = ViewRecipe(crops=(Crop(count=2, size=16),))
    state = torch.get_rng_state()
    paths = [tmp_path / "a.png", tmp_path / "b.png", tmp_path / "c.png"]
    for path, seed in zip(paths, (0, 0, 1), strict=True):
        _save_preview(path, sample, recipe, seed=seed)
    a, b, c = (path.read_bytes() for path in paths)
    assert a == b != c
    assert torch.equal(torch.get_rng_state(), state)


# Progress


def test_progress_is_shown_on_a_terminal_and_on_standard_error_only(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes anything for a terminal
    monkeypatch.setattr("ssole.progress.PATIENCE", 0.0)
    examine(folder, device="cpu", measure=False)
    said = capsys.readouterr()
    assert said.out == ""
    for words in ("reading photos", "12/12", "comparing images", "measuring"):
        assert words in said.err
    examine(folder, device="cpu", measure=False, progress=False)
    assert capsys.readouterr().err == ""


def test_many_channels_at_full_depth(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    images = random.integers(0, 65536, (30, 12, 12, 5), dtype=np.uint16)
    recipe = tiny.SETTINGS | {
        "channels": 5,
        "augment": {
            "crops": [{"count": 2, "size": 8}],
            **dict.fromkeys(("saturation", "hue", "grey"), 0.0),
            "mean": None,
            "std": None,
        },
    }
    path = tmp_path / "five.yaml"
    path.write_text(json.dumps(recipe))  # which is YAML
    images[7] = images[3]
    report = report_on(images, recipe=str(path), measure=True)
    assert report.unreadable == []
    assert [c.copies for c in report.exact_copies] == [["array:7"]]
    assert report.statistics is not None
    assert report.statistics.mean == pytest.approx((images / 65535).mean(axis=(0, 1, 2)).tolist())
    assert report.estimate is not None
    assert report.suggestion is not None
    assert "--channels 5 --preset channels" in report.suggestion.command
    assert report_on(images).verdict == "stop"  # RGB cannot be made of them
    named = report_on(images, channels=5)
    assert (named.unreadable, named.recipe) == ([], "small-images")
    with pytest.raises(ConfigError, match="channels"):
        report_on(images, recipe="small-images", channels=5)  # as of `ssole pretrain`: its views change colours


def test_a_channel_of_one_value_stops() -> None:
    images = np.random.default_rng(0).integers(0, 256, (8, 12, 12, 3), np.uint8)
    images[..., 2] = 7
    topics = {finding.topic: finding.level for finding in report_on(images).findings}
    assert topics["constant"] == "stop"
