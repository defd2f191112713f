"""Nothing is fetched because a recipe or a run folder says so, which may be a stranger's: only what the user names."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import tiny
from ssole import api, compare, extend
from ssole.config import ConfigError
from ssole.errors import DataError
from ssole.search.search import search
from ssole.training.loop import Given
from ssole.training.run import Run
from ssole.training.settings import eval_data_to_open

REASON = "images behind a URL, which are fetched only if you name it"


@dataclass
class Server:
    """Server of images on this machine, and what it was asked for."""

    url: str
    asked: list[str] = field(default_factory=list)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    (tmp_path / "served").mkdir()
    np.save(tmp_path / "served" / "images.npy", tiny.images())
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path / "served"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as serving:
        found = Server(f"http://127.0.0.1:{serving.server_port}/images.npy")
        monkeypatch.setattr(handler.func, "log_message", lambda *_: found.asked.append("asked"))
        threading.Thread(target=serving.serve_forever, args=(0.02,), daemon=True).start()
        yield found
        serving.shutdown()


@pytest.mark.parametrize("name", ["data", "eval_data"])
def test_a_recipe_fetches_nothing_unless_its_user_names_it(
    server: Server, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, photos = tiny.recipe(tmp_path, **{name: server.url}, steps=2, knn_every=2), tmp_path / "photos"
    tiny.write_folder(photos)
    option, out = f"--{name.replace('_', '-')}", ["--out", str(tmp_path / "run")]
    other = {"data": str(photos)} if name == "eval_data" else {}
    with pytest.raises(ConfigError, match=f"{name} of the recipe is {REASON}: give {option} beside the recipe"):
        api.pretrain(recipe=recipe, out=tmp_path / "run", **other)
    with pytest.raises(ConfigError, match=f"{name} of the recipe is {REASON}"):
        compare(["ssole"], recipe=recipe, out=tmp_path / "run", **other)
    words = ["--data", str(photos)] if other else []
    assert tiny.main("pretrain", "--recipe", recipe, *words, *out) == 2
    assert f"{name} of the recipe is {REASON}" in capsys.readouterr().err
    assert server.asked == []
    assert not (tmp_path / "run").exists()
    assert tiny.main("pretrain", "--recipe", recipe, *words, option, server.url, *out) == 0
    assert server.asked


def test_a_run_folder_fetches_nothing_unless_its_user_names_it(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tiny.start(tmp_path / "run", data=server.url)
    words, asked = str(run.path), len(server.asked)
    for command in (["eval", words], ["embed", words, "--out", str(tmp_path / "x.npz")], ["index", words]):
        assert tiny.main(*command) == 2
        assert f"was trained on {REASON}: pass --data" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(DataError, match=f"was trained on {REASON}"):
        search(run, "item 0")
    assert tiny.main("report", words) == 0
    assert REASON in (run.path / "report.html").read_text()
    run.backbone_path.unlink()
    with pytest.raises(DataError, match=rf"was trained on {REASON}: pass --data, or ssole\.resume\(run, data=images\)"):
        api.resume(run, progress=False)
    assert len(server.asked) == asked
    assert tiny.main("pretrain", "--resume", words, "--data", server.url) == 0
    assert tiny.main("eval", words, "--data", server.url) == 0
    assert tiny.main("index", words, "--data", server.url, "--out", str(tmp_path / "index")) == 0
    asked = len(server.asked)
    found = ["search", str(tmp_path / "index"), "--outliers", "-k", "2", "--out", str(tmp_path / "found.png")]
    assert tiny.main(*found) == 0
    assert "no picture: the index is of images behind a URL" in " ".join(capsys.readouterr().out.split())
    assert len(server.asked) == asked
    assert tiny.main(*found, "--data", server.url) == 0
    assert len(server.asked) > asked
    assert (tmp_path / "found.png").is_file()


def test_a_run_folder_is_measured_on_nothing_from_elsewhere_unless_its_user_names_it(
    server: Server, tmp_path: Path
) -> None:
    photos, signed = str(tiny.write_folder(tmp_path / "photos")), f"{server.url}?key=abc"
    run = tiny.start(tmp_path / "run", data=photos, eval_data=signed, knn_every=6)
    settings: dict[str, Any] = yaml.safe_load((run.path / "config.yaml").read_text())
    assert settings["eval_data"] == f"{server.url}?REMOVED"
    rows, asked = tiny.figures(run), len(server.asked)
    for again in (lambda: extend(run, steps=2, progress=False), lambda: resumed(run)):
        with pytest.raises(ConfigError, match=f"is measured on {REASON}: pass them again .--eval-data"):
            again()
    with pytest.raises(ConfigError, match="and other images are given: "):
        resumed(run, eval_data=photos)
    assert len(server.asked) == asked
    assert tiny.main("pretrain", "--resume", str(run.path), "--eval-data", signed) == 0
    assert tiny.figures(run) == rows
    assert sum("rankme" in row for row in rows) == 2


def resumed(run: Run, **given: Any) -> None:
    """Resume a run as if it had been interrupted at its end."""
    run.backbone_path.unlink(missing_ok=True)
    api.resume(run, progress=False, **given)


def test_what_torchrun_starts_again_has_its_urls_from_the_command(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same command names them, also those with a signature."""
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "1")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job")
    config = tiny.config(data=f"{server.url}?key=abc", eval_data=server.url, knn_every=6)
    with pytest.raises(tiny.Crash):
        api.start(config, tmp_path / "run", Given(evaluators={7: tiny.crash}, progress=False))
    assert api.start(config, tmp_path / "run", Given(progress=False)).finished


def test_a_warmup_that_never_ends_is_a_warning(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"12 steps, and its learning rate rises for 12 \(warmup_steps\): it never"):
        tiny.start(tmp_path / "long", optim__warmup_steps=12)
    tiny.start(tmp_path / "short", optim__warmup_steps=11)


def test_images_that_a_run_is_measured_on_may_be_moved(tmp_path: Path) -> None:
    old, new = tiny.write_folder(tmp_path / "old"), tmp_path / "new"
    config = tiny.config(eval_data=str(old))
    with pytest.raises(ConfigError, match="and other images are given"):
        eval_data_to_open(config, tmp_path / "run", str(new))
    old.rename(new)
    with pytest.warns(UserWarning, match=r"old is gone: .*new is taken to hold the same images"):
        assert eval_data_to_open(config, tmp_path / "run", str(new)) == str(new)
