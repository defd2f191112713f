"""Processes that die or hang, and torchrun, which starts them anew."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

import ranks
import tiny
from ssole import distributed
from ssole.config import ConfigError
from ssole.training.checkpoint import checkpoint_steps
from ssole.training.run import Run
from ssole.training.step import Learner

TIMEOUT = 8.0  # seconds that a busy machine may let a process wait
FAULT = 7  # step before which the fault comes, two after a checkpoint
SETTINGS: dict[str, Any] = {"batch_size": 8, "checkpoint_every": 5, "process_timeout": TIMEOUT}


def train(out: Path, fault: int = 0) -> None:
    """Train; the last process sends itself a signal on the way."""

    def step(self: Learner, *arguments: Any, **options: Any) -> Any:
        if self.steps_done == FAULT - 1 and fault and distributed.rank() == distributed.world_size() - 1:
            os.kill(os.getpid(), fault)
        return plain(self, *arguments, **options)

    plain = Learner.step
    with mock.patch.object(Learner, "step", step):
        tiny.start(out, **SETTINGS)


def survive(out: Path, fault: int) -> None:
    """Train, and write down what the process says of the end."""
    rank = os.environ["RANK"]
    os.dup2(os.open(out.parent / f"said by {rank}", os.O_WRONLY | os.O_CREAT), 2)
    try:
        train(out, fault)
    except distributed.ProcessError as error:
        print(error, file=sys.stderr)


def resume(out: Path) -> None:
    tiny.resume(out)


def weights(run: Path) -> bytes:
    return Run(run).backbone_path.read_bytes()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("undisturbed") / "run"
    ranks.run(2, train, path)
    return path


@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_the_others_stop_in_time_and_name_the_one_that_is_gone(
    undisturbed: Path, tmp_path: Path, fault: signal.Signals
) -> None:
    out = tmp_path / "run"
    first, last = ranks.start(2, survive, out, fault)
    first.join(timeout=120)
    assert first.exitcode is not None, "it still waits"
    last.kill()
    last.join()
    said = (tmp_path / "said by 0").read_text()
    assert f"process 1 (number {last.pid} on" in said
    assert "of 2 died or hangs" in said
    assert checkpoint_steps(Run(out)) == [5, 6]
    ranks.run(2, resume, out)
    assert weights(out) == weights(undisturbed)


SCRIPT = """
import os, sys
sys.path[:0] = {paths!r}
import signal, torch
torch.set_num_threads(1)
from pathlib import Path
from test_group import train
train(Path(sys.argv[1]), 0 if int(os.environ["TORCHELASTIC_RESTART_COUNT"]) else signal.SIGKILL)
"""


def test_torchrun_starts_them_anew_and_the_run_goes_on_exactly(undisturbed: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(paths=[str(Path(__file__).parents[1]), str(Path(__file__).parent)]))
    options = ("--nproc-per-node", "2", "--max-restarts", "1", "--master-port", str(ranks.free_port()))
    command = [sys.executable, "-m", "torch.distributed.run", *options, str(script), str(tmp_path / "run")]
    source = str(Path(distributed.__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "exitcode: -9) local_rank: 1" in done.stderr
    assert weights(tmp_path / "run") == weights(undisturbed)


def test_the_environment_of_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    assert distributed.launch() == distributed.group.Launch()
    monkeypatch.setenv("WORLD_SIZE", "4")  # alone, it may be anyone's
    assert distributed.launch().world_size == 1
    for name, value in ranks.environment(3, 4, 29500).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "2")
    place = distributed.launch()
    assert (place.rank, place.world_size, place.local_rank, place.local_world_size) == (3, 4, 1, 2)
    assert place.may_restart
    assert place.restarts == 0
    assert distributed.own_device(torch.device("cpu")) == torch.device("cpu")
    with pytest.raises(ConfigError, match="cuda:0 is one GPU, and 4 processes"):
        distributed.own_device(torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match="2 processes were started on a machine with 1 GPUs"):
        distributed.own_device(torch.device("cuda"))
    monkeypatch.setenv("WORLD_SIZE", "1")  # torchrun starts a single process anew, too
    assert distributed.launch() == distributed.group.Launch(may_restart=True)
    with pytest.raises(ConfigError, match="add --out FOLDER"):
        tiny.api.new_folder(None, "digits-m")
