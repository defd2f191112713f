"""`ssole search`: tables, pictures, images that are gone, and refused input."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from commands import Command
from PIL import Image


@pytest.fixture
def indexed(trained: Command) -> Command:
    """The same, with an index of the labelled images in run/index, of which two are equal."""
    shutil.copy("labeled/cat/004.png", "labeled/cat/copy.png")
    assert trained("index", "run").code == 0
    return trained


def test_similar_images_are_listed_and_drawn_with_the_best_first(indexed: Command) -> None:
    outcome = indexed("search", "run", "labeled/cat/004.png", "-k", "5")
    assert outcome.code == 0, outcome.err
    rows = re.findall(r"^(\d)\s+(\S+)\s+(\S+\.png)\s+(cat|dog)\s*$", outcome.out, flags=re.MULTILINE)
    assert [rank for rank, *_ in rows] == ["1", "2", "3", "4", "5"]
    assert {name for _, _, name, _ in rows[:2]} == {"cat/004.png", "cat/copy.png"}
    assert "picture: search.png" in outcome.out
    with Image.open("search.png") as picture:
        assert picture.size == (5 * 134 + 6, 2 * 148 + 6)
    outcome = indexed("search", "run/index", "cat/004.png", "-k", "1", "--out", "one.jpg")
    assert "cat/copy.png" in outcome.out
    with Image.open("one.jpg") as picture:
        assert picture.format == "JPEG"


@pytest.mark.parametrize("out", ["query.png", "labeled/found.png"])
def test_a_picture_takes_the_place_of_no_image(indexed: Command, out: str) -> None:
    shutil.copy("labeled/cat/004.png", "query.png")
    outcome = indexed("search", "run", "query.png", "--out", out)
    assert outcome.code == 2
    assert f"{out} would be one of the images in " in outcome.err


def test_duplicates_and_outliers(indexed: Command) -> None:
    outcome = indexed("search", "run", "--duplicates", "--least", "0.9999999")
    assert outcome.code == 0, outcome.err
    assert "1 of 61 images are near duplicates, in 1 groups" in outcome.out
    assert re.search(r"^cat/004.png\n  1.0000  cat/copy.png$", outcome.out, flags=re.MULTILINE)
    outcome = indexed("search", "run", "--duplicates", "--least", "0.01")
    assert "raise --least" in outcome.out
    outcome = indexed("search", "run", "--outliers", "-k", "3")
    assert "mean similarity to 10 neighbours" in outcome.out
    assert len(re.findall(r"\.png +(?:cat|dog)", outcome.out)) == 3


def test_outliers_among_few_images_have_fewer_neighbours(trained: Command) -> None:
    Path("few").mkdir()
    for image in sorted(Path("labeled/cat").glob("*.png"))[:4]:
        shutil.copy(image, "few")
    assert trained("index", "run", "--data", "few", "--out", "few-index").code == 0
    assert "mean similarity to 3 neighbours" in trained("search", "few-index", "--outliers", "-k", "2").out


def test_without_the_images_there_is_a_table_and_a_note(indexed: Command) -> None:
    shutil.move("labeled", "moved")
    outcome = indexed("search", "run", "cat/004.png", "-k", "2")
    assert outcome.code == 0, outcome.err
    assert "cat/copy.png" in outcome.out
    assert "no picture: There is no dataset, folder or file named" in outcome.out
    assert not Path("search.png").exists()
    Path("moved/cat/copy.png").unlink()
    Path("moved/cat/004.png").unlink()
    outcome = indexed("search", "run", "cat/004.png", "-k", "2", "--data", "moved")
    assert "2 images are gone or cannot be read, such as cat/004.png" in outcome.out
    assert Path("search.png").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["search", "run"], "give one of: an image to look for (QUERY), --duplicates, --outliers"),
        (["search", "run", "photos/cat/000.png", "--outliers"], "give one of"),
        (["search", "nowhere", "one.jpg"], "there is no folder nowhere"),
        (["search", "photos", "one.jpg"], "photos is neither an index nor a run folder"),
        (["search", "run", "one.jpg"], "there is no file 'one.jpg', and run/index has no image of the id 'one"),
        (["search", "run", "tiny.yaml"], "tiny.yaml: "),
        (["search", "run", "photos/cat/000.png", "-k", "100"], "k is 100, and run/index has 61 images"),
        (["search", "run", "photos/cat/000.png", "--out", "one.txt"], "names the picture to write"),
    ],
)
def test_wrong_input_to_search(indexed: Command, arguments: list[str], words: str) -> None:
    outcome = indexed(*arguments)
    assert outcome.code == 2
    assert words in outcome.err


@pytest.mark.parametrize("query", [["few/000.png"], ["--outliers"]])
def test_by_default_all_of_a_small_index_are_found(trained: Command, query: list[str]) -> None:
    Path("few").mkdir()
    for image in sorted(Path("photos").rglob("*.png"))[:4]:
        shutil.copy(image, "few")
    assert trained("index", "run", "--data", "few", "--out", "few-index").code == 0
    outcome = trained("search", "few-index", *query)
    assert outcome.code == 0, outcome.err
    assert len(outcome.out.splitlines()) > 4


@pytest.mark.parametrize("arguments", [["search", "run", "cat/000.png"], ["select", "run"]])
def test_a_run_that_may_not_be_written_to_has_its_index_elsewhere(
    trained: Command, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: Path(path).name != "run")  # root may write everywhere
    outcome = trained(*arguments)
    assert outcome.code == 2
    elsewhere = "make the index elsewhere (ssole index run --out FOLDER), and name that FOLDER"
    assert f"run may not be written to: {elsewhere}" in outcome.err
