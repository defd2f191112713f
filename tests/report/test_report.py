"""`ssole.report`: what the page holds, what it does without images, and refused input."""

from __future__ import annotations

import os
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import ssole
import tiny
from ssole.config import ConfigError
from ssole.errors import DataError
from ssole.report import page as pages
from ssole.report import report as module
from ssole.report.page import MAX_PAGE_BYTES
from ssole.training.run import Run

pytest.importorskip("bokeh", reason="the extra report is not installed")
pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning")  # 22 images of noise: high ranks cannot be reached


class Outline(HTMLParser):
    """Ids, texts and attributes of a page, as a browser would read them."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._inside = ""
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.ids |= {value for name, value in attrs if name == "id" and value}
        self._inside = tag

    def handle_data(self, data: str) -> None:
        if self._inside not in ("script", "style"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def test_the_page_has_all_sections_and_fits(page: Path, sections: frozenset[str]) -> None:
    outline = Outline(page)
    assert outline.ids >= sections
    assert page.stat().st_size < MAX_PAGE_BYTES
    for words in ("views matched", "kNN k=20", "untrained", "taken for", "Wh, if the machine draws", "config.yaml"):
        assert words in outline.text, words


def test_what_the_page_says_of_its_sample_holds(page: Path) -> None:
    text = Outline(page).text
    assert "kNN (k = 20) among 48 images: " in text
    assert "of 12 test images. The table above is of images, 12 images." in text
    assert "torchrun" not in text  # which is null in environment.json


def test_nothing_from_outside_becomes_markup(page: Path) -> None:
    outline = Outline(page)
    assert "<script>alert(1)<" in outline.text  # a class, as text
    assert "<b onclick=alert(4)>run" in outline.text
    assert "49" not in [word.strip("}{") for word in outline.text.split("alert(3)")[-1].split()[:1]]
    for tag, attributes in outline.tags:
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
        assert tag != "b"
    scripts = [attributes for tag, attributes in outline.tags if tag == "script"]
    assert all("src" not in attributes for attributes in scripts)
    plain = page.read_text(encoding="utf-8")
    assert "<script>alert" not in plain
    assert "{{ 7*7 }}" in plain  # and not 49: names are no templates


def test_nothing_points_out_of_the_page(page: Path) -> None:
    for tag, attributes in Outline(page).tags:
        for name in ("src", "href", "action"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#")), (tag, value)
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page.read_text(encoding="utf-8"))
    assert policy is not None
    assert policy[1].startswith("default-src 'none'")
    assert "http" not in policy[1]


def test_a_run_whose_images_are_gone(tmp_path: Path) -> None:
    data = tiny.write_folder(tmp_path / "images")
    run = tiny.start(tmp_path / "run", data=str(data), steps=2)
    shutil.rmtree(data)
    outline = Outline(ssole.report(run, progress=False))
    assert "There are no pictures:" in outline.text
    assert "). If the images are elsewhere now, give --data." in outline.text
    assert "This page is made without pictures." in outline.text
    assert outline.ids >= {"accuracy", "training", "cost", "repeat"}
    assert not outline.ids & {"map", "neighbours", "views"}


def test_pictures_that_cannot_be_made_again_are_kept(tmp_path: Path) -> None:
    data = tiny.write_folder(tmp_path / "images")
    run = tiny.start(tmp_path / "run", data=str(data), steps=2)
    path = ssole.report(run, progress=False)
    shutil.rmtree(data)
    with pytest.raises(ConfigError, match=r"There are no pictures: .*report\.html has pictures from before, and stays"):
        ssole.report(run, progress=False)
    assert "map" in Outline(path).ids
    assert "map" not in Outline(ssole.report(run, out=path, progress=False)).ids
    ssole.report(run, progress=False)  # there are none to keep any more


def test_a_run_folder_that_may_not_be_written_to_is_refused_at_once(
    hostile_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere
    with pytest.raises(ConfigError, match=r"run may not be written to: write the page elsewhere \(--out FILE\)"):
        ssole.report(hostile_run)


def test_images_in_memory_must_be_given(tmp_path: Path, sections: frozenset[str]) -> None:
    run = tiny.start(tmp_path / "run", steps=2)
    assert "trained on images in memory" in Outline(ssole.report(run, progress=False)).text
    given = Outline(ssole.report(run, data=tiny.images(), progress=False))
    assert given.ids >= sections - {"confusions"}
    assert "no accuracy" not in given.text


def test_an_unfinished_run(tmp_path: Path) -> None:
    run = tiny.start(tmp_path / "run", data=str(tiny.write_folder(tmp_path / "images")), steps=2)
    run.backbone_path.unlink()
    outline = Outline(ssole.report(run, progress=False))
    assert "Not finished: 2 steps so far" in outline.text
    assert "Below are its views; the other pictures need the backbone." in outline.text
    assert ("Drag to zoom" in outline.text) == ("Too few steps" not in outline.text)  # no hint without curves
    assert "views" in outline.ids
    assert not outline.ids & {"map", "neighbours", "outliers"}
    (picture,) = [attributes for tag, attributes in outline.tags if tag == "img"]
    assert picture["alt"] == "4 images, each beside its views (2 of 8 px)"
    shutil.rmtree(tmp_path / "images")
    outline = Outline(ssole.report(run, progress=False))
    assert "This page is made without pictures." in outline.text
    assert "views" not in outline.ids


def test_several_runs_stand_side_by_side(hostile_run: Run, tmp_path: Path) -> None:
    other = tiny.start(tmp_path / "other", data=hostile_run.config.data, steps=3)
    path = ssole.report([hostile_run, other.path], out=tmp_path / "both.html", images=30, progress=False)
    outline = Outline(path)
    headings = [word.strip() for word in outline.words]
    assert headings.count("other") >= 8
    assert {"map-0", "map-1"} <= outline.ids
    assert headings.index("trained") < headings.index("untrained") < headings.index("kNN k=20")  # a metric a row
    assert (tmp_path / "both.html").is_file()


def test_an_older_report_is_replaced(hostile_run: Run, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    out.write_text("old")
    ssole.report(hostile_run, out=out, images=20, progress=False)
    assert out.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html"]


def test_columns_are_read_once_so_that_they_may_come_through_a_pipe(
    hostile_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[object] = []

    def facts_of(record: object, data: object, columns: object, **_: object) -> SimpleNamespace:
        given.append(columns)
        return SimpleNamespace(record=record, reason="")

    monkeypatch.setattr(module, "facts_of", facts_of)
    monkeypatch.setattr(pages, "render", lambda facts: "")
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as file:
        file.write("id,camera\na.png,left\n")
    ssole.report(hostile_run, columns=f"/dev/fd/{reader}", out=tmp_path / "page.html", progress=False)
    os.close(reader)
    assert given == [(Path(f"/dev/fd/{reader}"), ["id", "camera"], [["a.png", "left"]])]


def test_refused_input(hostile_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="there is no"):
        ssole.report(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="20 to 50,000 images, got 5"):
        ssole.report(hostile_run, images=5)
    with pytest.raises(ConfigError, match="needs a run folder, got none"):
        ssole.report([])
    with pytest.raises(ConfigError, match=r"there is no folder .*nowhere: the report is one file"):
        ssole.report(hostile_run, out=tmp_path / "nowhere" / "x.html")
    with pytest.raises(ConfigError, match=r"is a folder: the report is one file"):
        ssole.report(hostile_run, out=tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(module, "facts_of", lambda *_, **__: pytest.fail("the file was not read first"))
        with pytest.raises(DataError, match=r"named '.*nowhere'"):
            ssole.report(hostile_run, data=tmp_path / "nowhere", progress=False)
        with pytest.raises(DataError, match=r"nowhere\.csv is not a CSV file"):
            ssole.report(hostile_run, columns=tmp_path / "nowhere.csv", progress=False)
    (tmp_path / "columns.csv").write_text("path,size\nunknown.png,1\n")
    with pytest.raises(DataError, match=r"names none of the images: it has 'unknown\.png'"):
        ssole.report(hostile_run, columns=tmp_path / "columns.csv", out=tmp_path / "x.html", images=20, progress=False)
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs bokeh and jinja2: pip install 'ssole\[report\]'"):
        ssole.report(hostile_run)


def test_file_names_that_are_not_text(hostile_run: Run, tmp_path: Path) -> None:
    data = tiny.write_folder(tmp_path / "images", 22, classes=(".",))
    first = data / "000.png"
    try:
        first.rename(first.with_name(os.fsdecode(b"not\xfftext.png")))
    except OSError:
        pytest.skip("this file system takes no such names")
    path = ssole.report(hostile_run, data=str(data), out=tmp_path / "report.html", progress=False)
    assert "not\\udcfftext.png" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_a_handful_of_images(count: int, hostile_run: Run, tmp_path: Path, sections: frozenset[str]) -> None:
    data = tiny.write_folder(tmp_path / "images", count)
    outline = Outline(ssole.report(hostile_run, data=str(data), out=tmp_path / "report.html", progress=False))
    assert outline.ids >= sections - {"confusions"}
    assert "nan" not in outline.text.split()


@pytest.fixture
def diverged(tmp_path: Path) -> Run:
    """A finished run whose weights hold NaN, and its images in `images`."""
    run = tiny.start(tmp_path / "run", data=str(tiny.write_folder(tmp_path / "images")), steps=1)
    with safe_open(run.backbone_path, framework="pt") as file:
        header = file.metadata()
    weights = load_file(run.backbone_path)
    weights["conv1.weight"].fill_(float("nan"))
    save_file(weights, run.backbone_path, metadata=header)
    return run


def test_weights_that_are_not_finite_without_images(diverged: Run, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "images")
    outline = Outline(ssole.report(diverged, progress=False))
    assert "✗ bad" in outline.text
    assert "It did not work: the weights hold NaN or infinity: conv1.weight." in outline.text
    assert "If the images are elsewhere now, give --data." in outline.text
    diverged.backbone_path.write_bytes(b"damaged")
    assert "There are no pictures: " in Outline(ssole.report(diverged, progress=False)).text


def test_features_that_are_not_finite(diverged: Run) -> None:
    run = diverged
    outline = Outline(ssole.report(run, progress=False))
    assert "✗ bad" in outline.text
    assert "It did not work: features hold NaN or infinity in" in outline.text
    assert "There are no pictures: the network gives no finite features." in outline.text
    assert outline.ids >= {"accuracy", "training", "cost", "repeat"}
