"""A run that was stopped in any way and resumed ends with the very bytes of one that was not."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tiny
from ssole import api
from ssole.config import ConfigError
from ssole.data.base import Source
from ssole.errors import DataError
from ssole.training.checkpoint import checkpoint_steps
from ssole.training.monitor import Monitor
from ssole.training.run import Run
from ssole.training.stopping import Interrupted, Stop, stop_signal
from tiny import Crash, crash, figures

VIT = {
    "backbone": "vit_tiny_patch16_224",
    "backbone_args": {
        "img_size": 8,
        "patch_size": 4,
        "depth": 2,
        "embed_dim": 16,
        "num_heads": 2,
        "drop_path_rate": 0.5,
        "proj_drop_rate": 0.3,
    },
}
CASES: dict[str, dict[str, Any]] = {
    "sgd": {},
    "lars": {"optim__name": "lars"},
    "adamw": {"optim__name": "adamw", "optim__lr": 1e-3},
    "muon": {"optim__name": "muon", "optim__lr": 1e-2},
    "whitened stem": {"model__stem_init": "whitening"},
    "four views": {"views": 4},
    "two crop sizes": {"augment__crops": [{"count": 2, "size": 8}, {"count": 3, "size": 6, "scale": [0.1, 0.4]}]},
    "smaller crops first": {"augment__early_size": 4, "augment__early_share": 0.6},  # 8 of 12 steps
    "bfloat16": {"precision": "bfloat16"},
    "batch norm and clipping": {"model__projector_norm": "batch", "optim__clip_grad_norm": 0.1},
    "dropout": {"model": VIT},
}


@pytest.mark.parametrize("overrides", CASES.values(), ids=CASES)
def test_a_crash_in_the_middle_of_an_epoch_changes_nothing(tmp_path: Path, overrides: dict[str, Any]) -> None:
    whole = tiny.start(tmp_path / "whole", **overrides, checkpoint_every=3)
    with pytest.raises(Crash):
        tiny.start(tmp_path / "crashed", **overrides, checkpoint_every=3, evaluators={8: crash})
    crashed = Run(tmp_path / "crashed")
    assert checkpoint_steps(crashed) == [5, 6]  # of an epoch's end, and of every third step
    assert [row["step"] for row in crashed.metrics] == list(range(1, 9))  # 7 and 8 will be trained again
    assert not crashed.finished

    resumed = tiny.resume(crashed)
    assert resumed.backbone_path.read_bytes() == whole.backbone_path.read_bytes()
    assert figures(resumed) == figures(whole)
    assert [row["step"] for row in resumed.metrics] == list(range(1, tiny.STEPS + 1))


def test_crash_after_crash_and_before_the_first_checkpoint(tmp_path: Path) -> None:
    whole = tiny.start(tmp_path / "whole")
    with pytest.raises(Crash):
        tiny.start(tmp_path / "crashed", evaluators={3: crash})
    crashed = Run(tmp_path / "crashed")
    assert checkpoint_steps(crashed) == [0]
    for step in (4, 9, 11):
        with pytest.raises(Crash):
            tiny.resume(crashed, evaluators={step: crash})
    assert checkpoint_steps(crashed) == [5, 10]
    assert tiny.resume(crashed).backbone_path.read_bytes() == whole.backbone_path.read_bytes()


def test_a_crash_between_the_last_checkpoint_and_the_weights(tmp_path: Path) -> None:
    run = tiny.start(tmp_path / "run")
    expected, rows = run.backbone_path.read_bytes(), run.metrics
    run.backbone_path.unlink()
    assert tiny.resume(run).backbone_path.read_bytes() == expected
    assert run.metrics == rows


class Assorted(Source):
    """Images of different sizes, decoded one by one; one of them cannot be read."""

    name, labels, classes = "assorted", None, None

    def __len__(self) -> int:
        return tiny.IMAGES

    def id(self, i: int) -> str:
        return f"image {i}"

    def read(self, i: int) -> bytes | np.ndarray[Any, Any]:
        return b"" if i == 13 else tiny.images()[i, : 9 + i % 4]


def test_images_of_different_sizes_and_an_unreadable_one(tmp_path: Path) -> None:
    whole = tiny.start(tmp_path / "whole", data=Assorted())
    with pytest.raises(Crash):
        tiny.start(tmp_path / "crashed", data=Assorted(), evaluators={8: crash})
    resumed = tiny.resume(tmp_path / "crashed", data=Assorted())
    assert resumed.backbone_path.read_bytes() == whole.backbone_path.read_bytes()
    assert [row["id"] for row in resumed.unreadable] == ["image 13"]


def test_a_finished_run_is_returned_untouched(tmp_path: Path) -> None:
    run = tiny.start(tmp_path / "run")
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in run.path.rglob("*") if path.is_file()}
    assert api.resume(str(run.path)) == run
    after = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in run.path.rglob("*") if path.is_file()}
    assert after == before


def test_other_data_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Crash):
        tiny.start(tmp_path / "run", evaluators={7: crash})
    with pytest.raises(DataError, match="started on 22 images and the data now hold 23"):
        tiny.resume(tmp_path / "run", data=tiny.images(23))


STEPS, BATCH, IMAGES = 124, 4, 124  # long enough to be caught in the middle; 31 steps an epoch


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images in photos/ and a run, whole/, that nobody disturbed."""
    root = tmp_path_factory.mktemp("signals")
    tiny.write_folder(root / "photos", IMAGES)
    assert tiny.main(*arguments(root, "whole")) == 0
    return root


def arguments(root: Path, out: str) -> list[str]:
    given = ["pretrain", "--recipe", tiny.recipe(root, steps=STEPS), "--data", str(root / "photos")]
    return [*given, "--out", str(root / out), "--deterministic", "--device", "cpu", "--checkpoint-every", "2"]


def wait_for_a_checkpoint(photos: Path, out: str, process: subprocess.Popen[Any]) -> None:
    deadline = time.monotonic() + 120
    while not any(checkpoint_steps(Run(photos / out))):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)


def caught(photos: Path, out: str, *numbers: signal.Signals) -> tuple[int, str, str]:
    """Start a run, and send it signals as soon as it has a checkpoint: exit code, output and errors."""
    process = tiny.command(*arguments(photos, out), cwd=photos)
    try:
        wait_for_a_checkpoint(photos, out, process)
        for number in numbers:
            process.send_signal(number)
        output, errors = process.communicate(timeout=120)
    finally:
        process.kill()
    return process.returncode, output, errors


def assert_it_goes_on_to_the_same_end(photos: Path, out: str) -> None:
    run = Run(photos / out)
    assert not run.finished
    assert checkpoint_steps(run)[-1] % (IMAGES // BATCH) != 0  # in the middle of an epoch
    assert tiny.main("pretrain", "--resume", str(run.path)) == 0
    whole = Run(photos / "whole")
    assert run.backbone_path.read_bytes() == whole.backbone_path.read_bytes()
    assert figures(run) == figures(whole)
    assert [row["step"] for row in run.metrics] == list(range(1, STEPS + 1))


@pytest.mark.slow
def test_kill_9(photos: Path) -> None:
    code, _, _ = caught(photos, "killed", signal.SIGKILL)
    assert code == -signal.SIGKILL
    assert_it_goes_on_to_the_same_end(photos, "killed")


SIGNALS = [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "expected"), SIGNALS)
def test_a_signal_saves_and_says_how_to_go_on(photos: Path, number: signal.Signals, expected: int) -> None:
    code, _, errors = caught(photos, number.name, number)
    assert code == expected, errors
    assert "Traceback" not in errors
    told = re.search(r"stopped after step (\d+); go on with: ssole pretrain --resume (\S+)", errors)
    assert told, errors
    assert checkpoint_steps(Run(photos / number.name))[-1] == int(told[1])
    assert told[2] == str(photos / number.name)
    assert_it_goes_on_to_the_same_end(photos, number.name)


@pytest.mark.slow
def test_several_signals_at_once_are_one_request(photos: Path) -> None:
    """As schedulers send them, which would end the process before it has saved."""
    code, _, errors = caught(photos, "several", signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    assert code in {130, 143, 129}, errors
    assert "Traceback" not in errors
    assert "race condition" not in errors
    assert re.search(r"stopped after step \d+; go on with", errors), errors
    assert_it_goes_on_to_the_same_end(photos, "several")


@pytest.mark.slow
def test_a_terminal_that_is_closed_saves(photos: Path) -> None:
    """The system sends SIGHUP, and nothing can be printed any more."""
    theirs, ours = pty.openpty()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    program = [sys.executable, "-m", "ssole", *arguments(photos, "closed")]
    with subprocess.Popen(
        program, cwd=photos, env=environment, stdin=ours, stdout=ours, stderr=ours, start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    ) as process:  # fmt: skip
        os.close(ours)
        threading.Thread(target=drain, args=(theirs,), daemon=True).start()
        wait_for_a_checkpoint(photos, "closed", process)
        os.close(theirs)
        assert process.wait(timeout=120) in {129, 1}
    assert_it_goes_on_to_the_same_end(photos, "closed")


def drain(terminal: int) -> None:
    with suppress(OSError):
        while os.read(terminal, 4096):
            pass


@pytest.fixture
def stop() -> Iterator[Stop]:
    """A request by SIGTERM and SIGINT in this process, whose own handlers only note that they were called."""
    noted: list[int] = []
    before = {number: signal.signal(number, lambda n, _: noted.append(n)) for number in (signal.SIGTERM, signal.SIGINT)}
    with stop_signal(lambda: None) as stop:
        stop.noted = noted  # type: ignore[attr-defined]
        yield stop
    for number, handler in before.items():
        signal.signal(number, handler)


def test_the_same_signal_again_acts_at_once(stop: Any) -> None:
    signal.raise_signal(signal.SIGTERM)
    assert (stop.requested, stop.noted) == (signal.SIGTERM, [])
    signal.raise_signal(signal.SIGTERM)
    assert stop.noted == [signal.SIGTERM]


def test_another_signal_acts_at_once_only_after_a_second(stop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGINT)
    assert (stop.requested, stop.noted) == (signal.SIGTERM, [])
    clock = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: clock() + 1.5)
    signal.raise_signal(signal.SIGINT)
    assert stop.noted == [signal.SIGINT]


def test_a_signal_that_torchrun_passes_on_is_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scheduler sends it to all processes of a job, and torchrun once more to those that it has started."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    noted: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: noted.append(number))
    try:
        with stop_signal(lambda: None) as stop:
            for _ in range(3):
                signal.raise_signal(signal.SIGTERM)
            assert (stop.requested, noted) == (signal.SIGTERM, [])
            clock = time.monotonic
            monkeypatch.setattr(time, "monotonic", lambda: clock() + 6)
            signal.raise_signal(signal.SIGTERM)
            assert noted == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_run_under_nohup_ignores_the_end_of_its_terminal() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_signal(lambda: None) as stop:
            signal.raise_signal(signal.SIGHUP)
            assert stop.requested == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_signal_after_a_step_is_answered_before_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def advance(self: Monitor, *arguments: Any) -> None:
        plain(self, *arguments)
        if self._step == 2:
            signal.raise_signal(signal.SIGTERM)

    plain = Monitor.advance
    monkeypatch.setattr(Monitor, "advance", advance)
    with pytest.raises(Interrupted, match="stopped after step 2"):
        tiny.start(tmp_path / "run")
    assert checkpoint_steps(Run(tmp_path / "run")) == [0, 2]


def test_a_path_given_in_one_folder_is_found_from_another(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(photos)
    with pytest.raises(Crash):
        tiny.start(Path("moved"), data="photos", evaluators={7: crash})
    monkeypatch.chdir(photos.parent)
    torch.set_num_threads(1)
    assert api.resume(photos / "moved", progress=False).finished


def test_two_processes_cannot_train_in_one_folder(tmp_path: Path) -> None:
    with pytest.raises(Crash):
        tiny.start(tmp_path / "run", evaluators={7: crash})
    hold = "import sys, ssole, time\nfrom ssole.training.run import Run, lock_run\n"
    hold += "with lock_run(Run(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", hold, str(tmp_path / "run")], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(ConfigError, match="another process is training in"):
            tiny.resume(Run(tmp_path / "run"))
        other.kill()
    assert tiny.resume(Run(tmp_path / "run")).finished  # the lock died with its holder


def test_images_by_other_names_are_told(tmp_path: Path) -> None:
    """As many images, but every one after the renamed has another place in the order, and so other views."""
    photos = tiny.write_folder(tmp_path / "photos")
    run = tiny.start(tmp_path / "run", data=str(photos), steps=5)
    run.backbone_path.unlink()  # as if it had been interrupted
    first = sorted(photos.rglob("*.png"))[0]
    first.rename(first.with_name("zzz.png"))
    with pytest.raises(DataError, match=r"as many images \(22\) by other names"):
        tiny.resume(run, data=str(photos))
    first.with_name("zzz.png").rename(first)  # whether it is the same picture, no time tells
    with pytest.warns(UserWarning, match="1 of 22 files were replaced or changed"):
        assert tiny.resume(run, data=str(photos), allow_changes=["images"]).finished
