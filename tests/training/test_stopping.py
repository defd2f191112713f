"""A signal is answered at once where the loop waits or evaluates; the run then goes on as if nobody had stopped it."""

from __future__ import annotations

import http.server
import os
import re
import signal
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from torch import nn

import ranks
import tiny
from ssole import distributed
from ssole.evaluation import online
from ssole.evaluation.datasets import Subset
from ssole.evaluation.preprocessing import Preprocessing
from ssole.training.checkpoint import checkpoint_steps
from ssole.training.feed import Feed
from ssole.training.run import Run
from ssole.training.step import Learner
from ssole.training.stopping import Interrupted


def measure(backbone: nn.Module) -> dict[str, float]:
    return {"weights": float(sum(p.detach().double().sum() for p in backbone.parameters()))}


def mean(backbone: nn.Module) -> dict[str, float]:
    return {"mean": measure(backbone)["weights"] / 2}


class Long:
    """Evaluator that gets a signal and then takes too long, once: in its call of this number."""

    def __init__(self, call: int) -> None:
        self.calls, self._call = 0, call

    def __call__(self, backbone: nn.Module) -> dict[str, float]:
        self.calls += 1
        if self.calls == self._call:
            backbone.eval()
            signal.raise_signal(signal.SIGTERM)
            raise AssertionError("it went on after the signal")
        return mean(backbone)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return tiny.start(tmp_path_factory.mktemp("whole") / "run", evaluators={3: measure, 6: mean})


def assert_same(run: Run, whole: Run) -> None:
    assert run.backbone_path.read_bytes() == whole.backbone_path.read_bytes()
    assert tiny.figures(run) == tiny.figures(whole)


@pytest.mark.parametrize(("call", "step"), [(1, 6), (2, 12)])
def test_an_evaluation_is_left_and_made_after_resuming(tmp_path: Path, whole: Run, call: int, step: int) -> None:
    with pytest.raises(Interrupted, match=f"stopped after step {step};") as stopped:
        tiny.start(tmp_path / "run", evaluators={3: measure, 6: Long(call)})
    assert stopped.value.signal_number == signal.SIGTERM
    run = Run(tmp_path / "run")
    assert checkpoint_steps(run)[-1] == step
    assert not run.finished
    tiny.resume(run, evaluators={3: measure, 6: mean})
    assert_same(run, whole)


def wait_for(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """A batch that does not come, and a signal meanwhile."""
    finish = Feed._finish

    def late(self: Feed, number: int, *arguments: Any) -> Any:
        if number + 1 == step:
            signal.raise_signal(signal.SIGTERM)
            time.sleep(600)
        return finish(self, number, *arguments)

    monkeypatch.setattr(Feed, "_finish", late)


def test_a_wait_for_images_is_left(tmp_path: Path, whole: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        wait_for(patch, 8)
        with pytest.raises(Interrupted, match="stopped after step 7;"):
            tiny.start(tmp_path / "run", evaluators={3: measure, 6: mean})
    run = Run(tmp_path / "run")
    assert checkpoint_steps(run)[-1] == 7
    tiny.resume(run, evaluators={3: measure, 6: mean})
    assert_same(run, whole)


def test_an_evaluation_that_waits_for_images_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def get(self: Subset, indices: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        silent.wait(600)
        ended.append(True)

    silent, ended = threading.Event(), []
    photos = str(tiny.write_folder(tmp_path / "photos", 40))
    monkeypatch.setattr(Subset, "get", get)
    with pytest.raises(Interrupted, match="stopped after step 3;"):
        tiny.start(tmp_path / "run", eval_data=photos, knn_every=3)
    assert not ended  # it was not waited for
    silent.set()


def test_before_the_first_step_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wait_for(monkeypatch, 1)
    with pytest.raises(Interrupted, match="before the first step"):
        tiny.start(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_compiling_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def compile(self: Learner, **options: Any) -> bool:
        signal.raise_signal(signal.SIGTERM)
        raise AssertionError("it went on after the signal")

    monkeypatch.setattr(Learner, "wants_compiling", lambda self, steps: True)
    monkeypatch.setattr(Learner, "compile", compile)
    with pytest.raises(Interrupted, match="before the first step"):
        tiny.start(tmp_path / "run")


class Silent(http.server.SimpleHTTPRequestHandler):
    """Server of a folder that answers so many requests, and no more."""

    answers, asked, over = 200, 0, threading.Event()

    def do_GET(self) -> None:
        Silent.asked += 1
        if Silent.asked > self.answers:
            self.over.wait(120)
        super().do_GET()

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.mark.slow
def test_a_process_that_waits_for_a_silent_server_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for size in (12, 14):  # of one size, they would be held in memory
        tiny.write_folder(tmp_path / "images" / str(size), 10, size=size)
    names = [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.glob("images/*/*/*.png"))]
    (tmp_path / "list.txt").write_text("\n".join(names))
    monkeypatch.setenv("SSOLE_TIMEOUT", "300")
    handler = partial(Silent, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        given = ["pretrain", "--recipe", tiny.recipe(tmp_path, steps=10_000), "--out", str(tmp_path / "run")]
        given += ["--data", f"http://127.0.0.1:{server.server_port}/list.txt", "--cache-gb", "0"]
        process = tiny.command(*given, cwd=tmp_path)
        while Silent.asked <= Silent.answers and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=100)
        Silent.over.set()
        server.shutdown()
    assert process.returncode == 143, errors
    told = re.search(r"stopped after step (\d+); go on with", errors)
    assert told, errors
    assert checkpoint_steps(Run(tmp_path / "run"))[-1] == int(told[1])


SHARED: dict[str, Any] = {"knn_every": 3, "process_timeout": 60.0}
LAST = 1  # rank of the process that gets the signal


def stop_in(folder: Path, name: str, patch: Any, step: int) -> None:
    """A run with this change, which a signal to one process stops after this step in both."""
    match = f"stopped after step {step};"
    with patch, pytest.raises(Interrupted, match=match) as stopped:
        tiny.start(folder / name, data=str(folder / "photos"), eval_data=str(folder / "photos"), **SHARED)
    assert stopped.value.signal_number == signal.SIGTERM


def long_extraction() -> Any:
    """Evaluation of many batches, of which the last process gets a signal in the first; the second is never made."""
    plain, rounds = Preprocessing.__call__, []

    def prepare(self: Preprocessing, *arguments: Any, **options: Any) -> Any:
        rounds.append(1)
        assert len(rounds) == 1, "it went on after the signal"
        if distributed.rank() == LAST:
            signal.raise_signal(signal.SIGTERM)
        return plain(self, *arguments, **options)

    return mock.patch.object(Preprocessing, "__call__", prepare)


def long_figures() -> Any:
    """Evaluation that the first process does for all, and in which it gets a signal."""

    def classify(*arguments: Any, **options: Any) -> Any:
        signal.raise_signal(signal.SIGTERM)
        raise AssertionError("it went on after the signal")

    return mock.patch.object(online, "knn_classify", classify)


def long_wait() -> Any:
    """A batch that does not come to the last process, which gets a signal meanwhile."""
    plain = Feed._finish

    def finish(self: Feed, number: int, *arguments: Any) -> Any:
        if number == 7 and distributed.rank() == LAST:
            signal.raise_signal(signal.SIGTERM)
            raise AssertionError("it went on after the signal")
        return plain(self, number, *arguments)

    return mock.patch.object(Feed, "_finish", finish)


def share(folder: Path) -> None:
    small = partial(online.extract, batch_size=4)  # more batches than processes
    with mock.patch.object(online, "extract", small):
        tiny.start(folder / "whole", data=str(folder / "photos"), eval_data=str(folder / "photos"), **SHARED)
        stop_in(folder, "extraction", long_extraction(), 3)
        stop_in(folder, "figures", long_figures(), 3)
        stop_in(folder, "wait", long_wait(), 7)
        for name in ("extraction", "figures", "wait"):
            tiny.resume(folder / name, data=str(folder / "photos"))


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs on two processes, as few starts as possible because these take longer than the tiny runs."""
    folder = tmp_path_factory.mktemp("shared")
    tiny.write_folder(folder / "photos", 40)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSOLE_CACHE", str(folder / "cache"))
        ranks.run(2, share, folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", ["extraction", "figures", "wait"])
def test_processes_leave_together_and_go_on_as_if_nobody_had_stopped_them(shared: Path, name: str) -> None:
    whole = Run(shared / "whole")
    assert [row["step"] for row in whole.metrics if "knn20" in row] == [3, 6, 9, 12]
    assert_same(Run(shared / name), whole)
