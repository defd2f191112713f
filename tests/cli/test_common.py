"""What commands share: parsing, text for a terminal, the data of a run, and pictures to write."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import tiny
from ssole.cli.common import (
    DataWords,
    OptionalNumber,
    RunPath,
    data_spec,
    parse,
    picture_format,
    run_config,
    run_data,
    show,
)
from ssole.config import ConfigError
from ssole.data.describe import describe
from ssole.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Options:
    """Examine a run.

    Example:
      ssole options runs/mine
    """

    run: RunPath
    """Folder of a run."""
    data: DataWords = ()
    """The images."""
    count: OptionalNumber = None
    """How many."""


def test_options_are_parsed_to_their_types() -> None:
    found = parse(Options, ["runs/mine", "--data", "a", "b", "--count", "3"])
    assert found == Options(run=Path("runs/mine"), data=("a", "b"), count=3)
    assert parse(Options, ["runs/mine"]) == Options(run=Path("runs/mine"))


def test_the_help_is_the_docstring_of_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        parse(Options, ["--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert "usage: ssole options " in text
    for words in ("Examine a run.", "  ssole options runs/mine", "RUN", "--data", "--count INT", "How many."):
        assert words in text
    assert "(default: " not in text  # of what may be left out, nothing is better than None


def test_what_is_shown_steers_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    show("a\x1b[2Jb\u202ec\n\td")
    assert capsys.readouterr() == ("a\\x1b[2Jb\\u202ec\n\td\n", "")


def test_data_are_nothing_one_or_a_list() -> None:
    assert data_spec(()) is None
    assert data_spec(("photos",)) == "photos"
    assert data_spec(("a.tar", "b.tar")) == ["a.tar", "b.tar"]


def test_a_run_has_a_config_and_a_weight_file_has_none(tmp_path: Path) -> None:
    run = tiny.start(tmp_path / "run", steps=1)
    found = run_config(run.path)
    assert found == run.config
    assert run_config(run.backbone_path) is None
    (tmp_path / "photos").mkdir()
    with pytest.raises(ConfigError, match="photos is not a run folder"):
        run_config(tmp_path / "photos")
    with pytest.raises(ConfigError, match="there is no"):
        run_config(tmp_path / "nowhere")


@pytest.mark.parametrize("data", ["digits-m", "photos", "/nowhere/{0..9}.tar", ("digits-m", "/nowhere/*.tar")])
def test_names_and_patterns_are_not_looked_for(data: Any) -> None:
    assert run_data(tiny.config(data=data), "mine") == data


def test_images_of_a_run_that_are_gone_are_named(tmp_path: Path) -> None:
    photos, other = str(tmp_path / "photos"), str(tmp_path / "other")
    Path(photos).mkdir()
    assert run_data(tiny.config(data=photos), "mine") == photos
    for data in (other, (photos, other)):
        with pytest.raises(DataError) as raised:
            run_data(tiny.config(data=data), "mine")
        assert str(raised.value) == f"the images of mine are no longer there ({other}): pass --data"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (None, "mine does not say which images to use: pass --data"),
        (describe(tiny.images(2)), "mine was trained on images in memory: pass --data"),
        ("https://host/x.tar", "mine was trained on images behind a URL, which are fetched only if you name it: pass"),
        (("/a.tar", "s3://b/x.tar"), "mine was trained on images behind a URL"),
    ],
)
def test_data_that_a_run_cannot_give_have_to_be_named(data: Any, words: str) -> None:
    config = None if data is None else tiny.config(data=data)
    with pytest.raises(ConfigError if config is None else DataError) as raised:
        run_data(config, "mine")
    assert str(raised.value).startswith(words)


@pytest.mark.parametrize(
    ("name", "form"), [("a.png", "PNG"), ("a.JPG", "JPEG"), ("a.jpeg", "JPEG"), ("a.b.webp", "WEBP"), ("a.tif", "TIFF")]
)
def test_the_form_of_a_picture_is_known_by_its_suffix(tmp_path: Path, name: str, form: str) -> None:
    path = tmp_path / name
    assert picture_format(path) == form
    Image.new("RGB", (2, 2)).save(path, picture_format(path))
    with Image.open(path) as image:
        assert image.format == form


@pytest.mark.parametrize(
    "name", ["a", "a.txt", "a.svg", ".png", "a.cur"]
)  # Pillow reads the last, and does not write it
def test_what_no_picture_has_as_its_suffix_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError) as raised:
        picture_format(tmp_path / name)
    assert str(raised.value) == f"--out names the picture to write, such as picture.png; got {tmp_path / name}"


def test_a_folder_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        picture_format(tmp_path / "no" / "a.png")
    assert str(raised.value) == f"there is no folder {tmp_path / 'no'} to write a.png to"
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match="there is no folder"):
        picture_format(tmp_path / "file" / "a.png")
