"""Live report: the page and its token over real sockets, news of a run, a browser that follows it, the end."""

from __future__ import annotations

import http.client
import json
import re
import shutil
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from ssole.report.live import LivePage, LiveServer, serve
from ssole.report.page import Facts
from ssole.report.record import Record
from ssole.report.report import facts_of
from ssole.training.run import Run

pytest.importorskip("bokeh", reason="the extra report is not installed")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    root = tmp_path_factory.mktemp("live")
    return tiny.start(root / "run", data=str(tiny.write_folder(root / "images")), steps=3)


@pytest.fixture
def training(finished: Run, tmp_path: Path) -> Run:
    """A run of which three steps are done and no weights are there yet."""
    run = Run(shutil.copytree(finished.path, tmp_path / "<b>run"))
    run.backbone_path.unlink()
    return run


@pytest.fixture
def server(training: Run) -> Iterator[LiveServer]:
    make = partial(facts_of, data=None, columns=None, limit=20, device=torch.device("cpu"), progress=False)
    with LiveServer(LivePage([training.path], make, every=0.2)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask(server: LiveServer, path: str, *, host: str | None = None) -> tuple[int, dict[str, str], str]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=60)
    connection.request("GET", path, headers={} if host is None else {"Host": host})
    answer = connection.getresponse()
    found = answer.status, dict(answer.getheaders()), answer.read().decode("utf-8")
    connection.close()
    return found


def log(run: Run, step: int) -> None:
    with (run.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"step": step, "loss": 0.5, "lr": 0.1, "seconds": 1.0}) + "\n")


def test_the_page_needs_the_token(server: LiveServer) -> None:
    status, headers, text = ask(server, f"/?token={server.token}")
    assert status == 200
    assert "Not finished: 3 steps so far" in text
    assert "&lt;b&gt;run" in text
    assert "connect-src &#39;self&#39;" in text or "connect-src 'self'" in text
    assert (headers["Cache-Control"], headers["Referrer-Policy"]) == ("no-store", "no-referrer")
    for path in (
        "/",
        "/?token=",
        "/?token=x",
        f"/?token={server.token}x",
        "/?token=%C3%A4",
        "/version",
        "/version?token=x",
    ):
        status, _, text = ask(server, path)
        assert status == 403, path
        assert server.token not in text
    assert ask(server, f"/other?token={server.token}")[0] == 404
    assert ask(server, f"/../../etc/passwd?token={server.token}")[0] == 404


def test_another_host_name_is_refused(server: LiveServer) -> None:
    for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example:80", ""):
        assert ask(server, f"/?token={server.token}", host=host)[0] == 403, host
    assert ask(server, f"/version?token={server.token}", host="localhost:5000")[0] == 200  # through a tunnel


def test_it_listens_on_this_machine_only(server: LiveServer) -> None:
    assert server.server_address[0] == "127.0.0.1"
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/\?token=[\w-]{32}", server.url)


def test_news_change_the_version_and_the_page(server: LiveServer, training: Run) -> None:
    def version() -> str:
        return ask(server, f"/version?token={server.token}")[2]

    before = version()
    assert version() == before
    log(training, 4)
    assert version() != before
    assert "Not finished: 4 steps so far" in ask(server, f"/?token={server.token}")[2]


def test_a_damaged_file_is_shown_and_the_server_goes_on(server: LiveServer, training: Run) -> None:
    good = (training.path / "metrics.jsonl").read_bytes()
    (training.path / "metrics.jsonl").write_text("<script>\n")
    status, _, text = ask(server, f"/?token={server.token}")
    assert status == 500
    assert "line 1 of" in text
    assert "<script>" not in text
    (training.path / "metrics.jsonl").write_bytes(good)
    assert ask(server, f"/?token={server.token}")[0] == 200


def counted_page(run: Run) -> tuple[LivePage, list[Record]]:
    """Page of a run, and a list that grows by each time that its images are read."""
    made: list[Record] = []

    def make(record: Record) -> Any:
        made.append(record)
        return facts_of(record, None, None, limit=20, device=torch.device("cpu"), progress=False)

    return LivePage([run.path], make, every=1), made


def test_features_of_a_finished_run_are_computed_once(finished: Run, tmp_path: Path) -> None:
    run = Run(shutil.copytree(finished.path, tmp_path / "run"))
    page, made = counted_page(run)
    first = page.html()
    assert 'id="neighbours"' in first
    assert page.html() is first
    log(run, 9)
    assert page.html() != first
    assert len(made) == 1


def test_a_run_that_ends_while_another_is_computed(finished: Run, training: Run) -> None:
    """Its weights are news for the next page, and not those of the page that says it is not finished."""

    def make(record: Record) -> Facts:
        if record.path == finished.path:
            shutil.copy(finished.backbone_path, training.backbone_path)
        return facts_of(record, None, None, limit=20, device=torch.device("cpu"), progress=False)

    page = LivePage([finished.path, training.path], make, every=1)
    assert "The run is not finished" in page.html()
    assert "The run is not finished" not in page.html()


def test_views_of_a_training_run_are_drawn_once(training: Run) -> None:
    page, made = counted_page(training)
    first = page.html()
    assert 'id="views"' in first
    log(training, 4)
    assert 'id="views"' in page.html()
    assert len(made) == 1  # the images are not read again


def test_refused_input(finished: Run, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no"):
        serve(tmp_path / "nowhere", print)
    with pytest.raises(ValueError, match=r"every 0\.1 to 3600 seconds, got 0"):
        serve(finished, print, every=0)
    with pytest.raises(ValueError, match="cannot listen on port 70000"):
        serve(finished, print, port=70_000)
    taken = LiveServer(LivePage([finished.path], lambda record: None, every=1))  # type: ignore[arg-type, return-value]
    with taken, pytest.raises(ValueError, match=r"cannot listen on port \d+ of 127\.0\.0\.1 \(.*in use"):
        serve(finished, print, port=taken.server_address[1])


@pytest.mark.slow
def test_a_browser_follows_the_run(browser: Any, server: LiveServer, training: Run) -> None:
    errors: list[str] = []
    requests: list[str] = []
    page = browser.new_page()
    page.set_default_timeout(60_000)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("request", lambda request: requests.append(request.url))
    page.goto(server.url)
    page.wait_for_selector("html[data-ready=yes]", state="attached")
    assert page.locator(".live").inner_text().lower() == "live: follows the run"
    assert page.locator("#training .chart canvas").count() > 0
    views = page.locator("#views img")
    assert views.evaluate("image => image.complete && image.naturalWidth") > 100
    log(training, 5)
    page.wait_for_selector("text=Not finished: 5 steps so far")
    assert views.is_visible()
    assert errors == []
    here = server.url.partition("?")[0]
    assert {url.partition("?")[0] for url in requests if not url.startswith("data:")} == {here, here + "version"}
    server.shutdown()
    server.server_close()
    page.wait_for_selector("text=no longer live")
    page.close()
