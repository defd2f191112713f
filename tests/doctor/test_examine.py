"""The report of a whole examination, its JSON, its page, its preview and the command."""

from __future__ import annotations

import inspect
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console

import tiny
from ssole.cli.doctor import DoctorArgs
from ssole.config import ConfigError, Crop, ViewRecipe, recipe_names
from ssole.data.arrays import ArraySource
from ssole.data.folder import FolderSource
from ssole.doctor import Report, examine
from ssole.doctor import estimate as estimating
from ssole.doctor.examine import _save_preview
from ssole.doctor.page import print_page
from ssole.doctor.scan import draw_sample, scan
from ssole.errors import DataError

KEYS = {
    "ssole", "format", "verdict", "name", "images", "examined", "seconds", "unreadable", "ignored", "hidden", "classes",
    "contents", "exact_copies", "near_copies", "against", "findings", "statistics", "decode", "views", "suggestion",
    "recipe", "estimate", "preview",
}  # fmt: skip
CONTENTS_KEYS = {
    "formats", "modes", "width", "height", "shorter_side", "bytes", "total_bytes", "aspects", "one_size", "blank",
    "misnamed",
}  # fmt: skip
ESTIMATE_KEYS = {
    "device", "precision", "steps", "batch_size", "views", "step_seconds", "decode_seconds", "compile_seconds",
    "seconds", "steps_measured", "batch_measured", "memory_bytes", "memory_available", "disk_bytes",
    "disk_available",
}  # fmt: skip


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(estimating, "TRIAL_SECONDS", 0.5)
    monkeypatch.setattr("ssole.doctor.scan.SAMPLE_SECONDS", 0.4)
    monkeypatch.setattr("ssole.models.compile.can_compile", lambda: False)  # test_estimate.py compiles


def report_on(data: Any, **options: Any) -> Report:
    return examine(data, device="cpu", progress=False, **({"measure": False} | options))


def levels(report: Report) -> dict[str, str]:
    return {finding.topic: finding.level for finding in report.findings}


def page(report: Report, width: int = 100) -> str:
    text = io.StringIO()
    print_page(report, Console(file=text, width=width))
    return text.getvalue()


def damage(folder: Path) -> Path:
    """The folder of pictures, with copies, a broken file and a blank image added."""
    shutil.copy(folder / "00.png", folder / "copy of 00.png")
    Image.open(folder / "01.png").save(folder / "01 again.jpg", quality=60)
    Image.new("RGB", (30, 20), "white").save(folder / "blank.png")
    (folder / "[bold]empty.jpg").write_bytes(b"")
    (folder / "notes.txt").write_text("not an image")
    (folder / ".thumbnails").write_bytes(b"")
    return folder


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


def test_what_the_page_says(folder: Path) -> None:
    text = " ".join(page(report_on(damage(folder), measure=True)).split())
    for words in (
        "photos: 16 images",
        "PNG 14, JPEG 1",
        "landscape, about 4:3",
        "1 .txt, 1 hidden: ignored",
        "look at this cannot be read: 1 of 16 images (6.2 %)",
        "[bold]empty.jpg: the image is empty (0 bytes).",
        "00.png: copy of 00.png",
        "verdict training would work",
        "Estimated cost on this machine",
        "Suggested recipe: photos-fast",
        f" ssole pretrain --data {folder} --recipe photos-fast",
    ):
        assert words in text
    assert "Traceback" not in text


def test_the_command_is_not_wrapped(folder: Path) -> None:
    report = report_on(folder)
    assert report.suggestion is not None
    assert report.suggestion.command in page(report, width=40).splitlines()[-1]


def test_keys_of_the_json(folder: Path, tmp_path: Path) -> None:
    report = report_on(damage(folder), measure=True, against=folder)
    path = tmp_path / "report.json"
    report.save(path)
    found = json.loads(path.read_text(encoding="ascii"))
    assert found.keys() == KEYS
    assert found["contents"].keys() == CONTENTS_KEYS
    assert found["estimate"].keys() == ESTIMATE_KEYS
    assert found["format"] == 1
    assert found["against"].keys() == {"name", "images", "examined", "unreadable", "leaked"}
    assert found["against"]["leaked"][0].keys() == {"id", "twin", "exact"}
    assert found["unreadable"][0].keys() == {"index", "id", "reason"}
    assert found["suggestion"].keys() == {"recipe", "reasons", "overrides", "command"}
    assert found["statistics"].keys() == {"mean", "std", "images"}
    assert found["decode"].keys() == found["views"].keys() == {"value", "threads", "images"}
    assert all(finding.keys() == {"level", "topic", "text", "advice"} for finding in found["findings"])


def test_every_key_is_described() -> None:
    text = (Path(__file__).parents[2] / "docs" / "doctor.md").read_text(encoding="utf-8")
    assert [key for key in sorted(KEYS | CONTENTS_KEYS | ESTIMATE_KEYS) if f"`{key}`" not in text] == []


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


def test_the_page_names_the_limit(folder: Path) -> None:
    report = report_on(folder, limit=5)
    assert (report.images, report.examined) == (12, 5)
    text = " ".join(page(report).split())
    assert "12 images; an evenly spaced sample of 5 was examined" in text
    assert "all 5 images examined can be read" in text


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


# The command


def test_the_command_and_its_exit_codes(
    folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    fine = ("doctor", "photos", "--no-estimate", "--device", "cpu")
    assert tiny.main(*fine, "--json", "report.json", "--preview", "views.png") == 0
    assert "saved: report.json" in capsys.readouterr().out
    assert json.loads(Path("report.json").read_text())["preview"] == "views.png"
    with Image.open("views.png") as image:
        assert image.format == "PNG"
    assert tiny.main(*fine, "--against", "photos") == 1
    assert tiny.main(*fine, "--json", "no/report.json") == 2
    assert "there is no folder" in capsys.readouterr().err
    assert tiny.main("doctor", "photo") == 2
    assert "Did you mean photos?" in capsys.readouterr().err
    assert tiny.main("doctor") == 2
    assert "which images? For example: ssole doctor photos/" in capsys.readouterr().err


def test_json_on_standard_output_is_alone_there(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tiny.main("doctor", str(folder), "--no-estimate", "--device", "cpu", "--json", "-") == 0
    said = capsys.readouterr()
    assert json.loads(said.out).keys() == KEYS
    assert "photos: 12 images" in said.err


def test_the_command_has_the_limit_of_the_function() -> None:
    assert DoctorArgs().limit == inspect.signature(examine).parameters["limit"].default


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


def test_the_help_explains_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert tiny.main("doctor", "--help") == 0
    text = capsys.readouterr().out
    for option in ("DATA", "--against TEST", "--recipe NAME", "--device", "--preview FILE", "--json FILE", "--limit"):
        assert option in text
    assert "ssole doctor photos/" in text


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
