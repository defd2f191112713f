"""The page in a real browser: no error, no request, every section visible, hover, search, colours, dark and narrow.

That its pictures are where its script looks for them, and within their budget, needs no browser.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ssole.report import points
from ssole.report.page import MAX_PAGE_BYTES, Facts, _digest, _map, data_uri, sheets
from ssole.report.record import Record
from ssole.training.run import Run


class Opened:
    """Page in a window, with what it wrote to the console and what it asked the network for."""

    def __init__(self, browser: Any, path: Path, *, width: int = 1280, scheme: str = "light") -> None:
        self.page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.page.set_default_timeout(60_000)
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self._console(message.type, message.text))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("dialog", lambda dialog: self.errors.append(f"dialog {dialog.message}"))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())
        self.page.wait_for_selector("html[data-ready=yes]", state="attached")

    def _console(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self.errors.append(text)


@pytest.fixture
def opened(browser: Any, page: Path) -> Iterator[Opened]:
    found = Opened(browser, page)
    yield found
    found.page.close()


def test_no_error_no_request_and_every_section_is_visible(opened: Opened, page: Path, sections: frozenset[str]) -> None:
    for section in sorted(sections):
        box = opened.page.locator(f"#{section}")
        box.scroll_into_view_if_needed()
        assert box.is_visible(), section
        assert box.bounding_box()["height"] > 60, section
    assert opened.errors == []
    assert opened.page.locator('a[href^="http"]').count() == 0  # also within the charts
    assert [url for url in opened.requests if not url.startswith(("data:", "blob:"))] == [page.as_uri()]


def test_hostile_names_are_text(opened: Opened) -> None:
    assert opened.page.locator("h1").inner_text() == "<b onclick=alert(4)>run"
    assert opened.page.locator("#map .legend button").first.inner_text().startswith("<script>alert(1)<")
    opened.page.locator("#map .colour").select_option("<img src=x onerror=alert(5)>")
    assert opened.page.locator("#map .legend button").first.inner_text().startswith("<script>alert(6)</script> (")
    for name in ("next", "previous"):
        opened.page.locator(f"#map .{name}").click()
    assert opened.errors == []


def test_charts_are_drawn(opened: Opened) -> None:
    charts = opened.page.locator(".chart")
    assert charts.count() == 5
    for number in range(charts.count()):
        assert charts.nth(number).bounding_box()["height"] > 200
        assert charts.nth(number).get_attribute("aria-label")


def test_pointing_at_the_map_shows_an_image(opened: Opened) -> None:
    chart, name = opened.page.locator("#map-0"), opened.page.locator("#map .card .name")
    chart.scroll_into_view_if_needed()
    before, box = name.inner_text(), chart.bounding_box()
    for step in range(40 * 40):  # over the whole map, until a point is met
        x, y = (step % 40 + 0.5) / 40, (step // 40 + 0.5) / 40
        opened.page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])
        if name.inner_text() != before:
            break
    assert name.inner_text().endswith(".png")
    assert "data:image/webp" in opened.page.locator("#map .thumb").evaluate("e => e.style.backgroundImage")
    assert "label" in opened.page.locator("#map .values").inner_text()


def test_keyboard_search_and_colours(opened: Opened) -> None:
    page = opened.page
    page.locator("#map .find").fill("alert(3)")
    assert page.locator("#map .found").inner_text().endswith(" of 48")
    page.locator("#map .find").press("Tab")  # Previous
    page.keyboard.press("Tab")  # Next
    page.keyboard.press("Enter")
    assert "alert(3)" in page.locator("#map .card .name").inner_text()
    page.locator("#map .find").fill("")
    page.locator("#map .colour").select_option("cluster")
    buttons = page.locator("#map .legend button")
    assert buttons.first.inner_text().startswith("cluster 01")
    counts = [int(buttons.nth(i).inner_text().rpartition("(")[2].rstrip(")")) for i in range(buttons.count())]
    assert sum(counts) == 48
    buttons.first.click()
    assert buttons.first.get_attribute("aria-pressed") == "true"
    assert page.locator("#map .found").inner_text() == f"{counts[0]} of 48"
    assert opened.errors == []


def test_the_wheel_zooms_the_map_with_ctrl_and_scrolls_the_page_without(opened: Opened) -> None:
    page, chart = opened.page, opened.page.locator("#map-0")
    chart.scroll_into_view_if_needed()

    def width() -> float:
        found: float = page.evaluate(
            """() => {
              const roots = Bokeh.documents.flatMap((one) => one.roots());
              const map = roots.find((root) => [...root.references()].some((model) => model.name === "points"));
              return map.x_range.end - map.x_range.start;
            }"""
        )
        return found

    whole, box = width(), chart.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.wheel(0, 100)
    page.wait_for_timeout(300)
    assert width() == whole
    chart.scroll_into_view_if_needed()
    box = chart.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.keyboard.down("Control")
    page.mouse.wheel(0, -300)
    page.keyboard.up("Control")
    page.wait_for_timeout(300)
    assert width() < 0.9 * whole
    assert opened.errors == []


def test_a_screen_reader_finds_its_way(opened: Opened) -> None:
    page = opened.page
    levels = page.locator("h1, h2, h3, h4").evaluate_all("all => all.map((one) => Number(one.tagName[1]))")
    assert levels[0] == 1
    assert all(later <= earlier + 1 for earlier, later in pairwise(levels))  # none is skipped
    assert page.locator("img:not([alt]), img[alt='']").count() == 0
    for link in page.get_by_role("navigation", name="Sections").get_by_role("link").all():
        assert page.locator(link.get_attribute("href")).count() == 1
    for role, name in (("combobox", "Colour by"), ("searchbox", "Find"), ("button", "Next"), ("button", "Previous")):
        assert page.locator("#map").get_by_role(role, name=name, exact=True).count() == 1
    page.keyboard.press("Tab")
    assert page.locator(":focus").inner_text() == "Skip to the content"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_on_its_background(scheme: str, browser: Any, page: Path) -> None:
    found = Opened(browser, page, scheme=scheme)
    colours = found.page.evaluate(
        "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
    )
    ink, paper = (sum(map(int, colour.partition("(")[2].rstrip(")").split(",")[:3])) for colour in colours)
    assert (ink < 150 and paper > 600) if scheme == "light" else (ink > 600 and paper < 150)
    found.page.close()


def test_a_narrow_window_does_not_scroll_sideways(browser: Any, page: Path) -> None:
    found = Opened(browser, page, width=390)
    assert found.page.evaluate("document.documentElement.scrollWidth") <= 390
    assert found.errors == []
    found.page.close()


def test_the_digest_of_the_data_changes_with_names_and_with_pictures(hostile_run: Run, tmp_path: Path) -> None:
    record = Record.read(hostile_run.path)
    assert record.images is not None
    first, *others = record.images["contents"].items()
    assert len(others) == 31
    changed = [{"ids": "0" * 64}, {"contents": {first[0]: "0" * 32, **dict(others)}}, {"contents": {}}]
    digests = [_digest(replace(record, images=record.images | change)) for change in ({}, *changed)]
    assert len({*digests}) == 4
    assert digests[0].startswith(f"60 images, SHA-256 of their names {record.images['ids']}, of the contents of 32 of")
    assert _digest(replace(record, images=None)) == "not recorded"


class Many(SimpleNamespace):
    """Stand-in for the images of a large sample, with long names and pictures that compress badly."""

    def __len__(self) -> int:
        return len(self.after)

    def id(self, row: int) -> str:
        return f"photographs/of some class/2026-11-29 {row:012d}.jpeg"

    def pictures(self, rows: Sequence[int], side: int) -> list[Image.Image]:
        randoms = [np.random.default_rng(row % 997) for row in rows]
        return [Image.fromarray(random.integers(0, 256, (side, side, 3), dtype=np.uint8)) for random in randoms]


def test_fifty_thousand_points_fit(page: Path, hostile_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The map of as many images as a report takes, beside all that is on the page of a few."""
    monkeypatch.setattr(points, "LANDMARKS", 60)
    features = torch.randn(50_000, 8, generator=torch.Generator().manual_seed(0))
    train = Many(after=features, labels=torch.arange(50_000) % 20)
    sample: Any = SimpleNamespace(train=train, labelled=True, name_of=lambda label: f"class number {label}")
    found = _map(Facts(record=Record.read(hostile_run.path), sample=sample, reason=""), sample, 1)
    assert found["shown"] >= 2000
    assert len(found["data"]["ids"]) == len(found["data"]["where"]) == 50_000
    assert len(json.dumps(found)) + page.stat().st_size < MAX_PAGE_BYTES


def test_it_can_be_printed(browser: Any, page: Path) -> None:
    found = Opened(browser, page)
    assert found.page.pdf(format="A4")[:5] == b"%PDF-"
    found.page.close()


# Pictures


def decoded(uri: str) -> Image.Image:
    head, _, body = uri.partition(",")
    assert head == "data:image/webp;base64"
    return Image.open(io.BytesIO(base64.b64decode(body))).convert("RGB")


def test_a_thumbnail_lies_where_the_script_looks_for_it() -> None:
    colours = [(10 * (i % 25), 10 * (i // 25 % 25), 0) for i in range(530)]
    made = sheets(lambda rows: [Image.new("RGB", (8, 8), colours[i]) for i in rows], range(530), 8, 10**9)
    assert len(made) == 2
    first, second = map(decoded, made)
    assert (first.size, second.size) == ((200, 160), (200, 16))
    for number in (0, 24, 25, 137, 499):
        x, y = number % 25 * 8 + 4, number // 25 * 8 + 4
        assert np.abs(np.subtract(first.getpixel((x, y)), colours[number])).max() < 40
    assert np.abs(np.subtract(second.getpixel((4 * 8 + 4, 12)), colours[529])).max() < 40


def test_the_budget_is_kept() -> None:
    noise = [Image.fromarray(np.random.default_rng(i).integers(0, 255, (8, 8, 3), dtype=np.uint8)) for i in range(1100)]
    whole = sheets(lambda rows: [noise[i] for i in rows], range(1100), 8, 10**9)
    assert len(whole) == 3
    assert sheets(lambda rows: [noise[i] for i in rows], range(1100), 8, len(whole[0]) + len(whole[1])) == whole[:2]
    assert sheets(lambda rows: [noise[i] for i in rows], range(1100), 8, 10) == []


def test_a_data_uri_holds_the_picture() -> None:
    assert decoded(data_uri(Image.new("RGB", (5, 7), (200, 10, 10)))).size == (5, 7)
