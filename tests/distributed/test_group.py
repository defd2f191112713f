"""Processes that die or hang, and torchrun, which starts them anew."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
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

TIMEOUT = 20.0  # seconds that a busy machine may let a process wait
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


@pytest.mark.slow
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
    assert f"process 1 (pid {last.pid} on" in said
    assert "of 2 died or hangs" in said
    assert checkpoint_steps(Run(out)) == [5, 6]
    ranks.run(2, resume, out)
    assert weights(out) == weights(undisturbed)


SCRIPT = """
import importlib, os, sys
sys.path[:0] = {paths!r}
import ranks, signal, torch
torch.set_num_threads(1)
for name in ranks.PRELOADED:  # before the processes meet: no one waits for another that imports
    importlib.import_module(name)
from pathlib import Path
from test_group import train
train(Path(sys.argv[1]), 0 if Path(sys.argv[1]).exists() else signal.{fault})
"""


# torchrun kills a process that is stopped 30 seconds after the others have left, which no option of it shortens.
AGENT = """
from torch.distributed import run
from torch.distributed.elastic.multiprocessing.api import PContext
close = PContext.close
PContext.close = lambda self, death_sig=None, timeout=30: close(self, death_sig, 2)
run.main()
"""


def torchrun(folder: Path, *options: str, fault: str = "SIGKILL") -> subprocess.Popen[str]:
    """Start of a run whose last process is killed or stopped once, by an agent of torchrun."""
    script = folder / "script.py"
    script.write_text(SCRIPT.format(paths=[str(Path(__file__).parents[1]), str(Path(__file__).parent)], fault=fault))
    command = [sys.executable, "-c", AGENT, *options, str(script), str(folder / "run")]
    source = str(Path(distributed.__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("SIGKILL", r"exitcode: -9\) local_rank: 1"),
        ("SIGSTOP", r"process 1 \(pid \d+ on .*\) of 2 died or hangs"),
    ],
)
def test_torchrun_starts_them_anew_and_the_run_goes_on_exactly(
    undisturbed: Path, tmp_path: Path, fault: str, told: str
) -> None:
    options = ("--nproc-per-node", "2", "--max-restarts", "1", "--master-port", str(ranks.free_port()))
    agent = torchrun(tmp_path, *options, fault=fault)
    said = agent.communicate(timeout=240)[1]
    assert agent.returncode == 0, said
    assert re.search(told, said), said
    assert weights(tmp_path / "run") == weights(undisturbed)


@pytest.mark.slow
def test_the_same_on_two_machines_that_find_each_other(undisturbed: Path, tmp_path: Path) -> None:
    """One agent of torchrun for each machine, as under SLURM; here both are on this one."""
    place = ("--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{ranks.free_port()}", "--rdzv-id", "any")
    options = ("--nnodes", "2", "--nproc-per-node", "1", "--max-restarts", "1", *place, "--local-addr", "127.0.0.1")
    agents = [torchrun(tmp_path, *options) for _ in range(2)]
    said = [agent.communicate(timeout=240)[1] for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], said
    assert "exitcode: -9) local_rank: 0" in "".join(said)
    assert weights(tmp_path / "run") == weights(undisturbed)


@pytest.mark.slow
def test_a_start_of_the_same_job_goes_on_with_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "1")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "this")
    whole = tiny.start(tmp_path / "whole")
    with pytest.raises(tiny.Crash):
        tiny.start(tmp_path / "run", evaluators={10: tiny.crash})
    for changes in ({"RUN_ID": "another", "RESTART_COUNT": "1"}, {"RUN_ID": "none"}, {"MAX_RESTARTS": "0"}):
        with monkeypatch.context() as other:
            for name, value in changes.items():
                other.setenv(f"TORCHELASTIC_{name}", value)
            with pytest.raises(ConfigError, match="already holds a run"):
                tiny.start(tmp_path / "run")
    assert weights(tiny.start(tmp_path / "run").path) == weights(whole.path)


def test_the_environment_of_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    assert distributed.launch() == distributed.group.Launch()
    monkeypatch.setenv("WORLD_SIZE", "4")  # alone, it may be anyone's
    assert distributed.launch().world_size == 1
    for name, value in ranks.environment(3, 4, 29500).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "2")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    place = distributed.launch()
    assert (place.rank, place.world_size, place.local_rank, place.local_world_size) == (3, 4, 1, 2)
    assert place.may_restart
    assert place.restarts == 0
    assert place.job is None
    monkeypatch.setenv("WORLD_SIZE", "1")  # torchrun starts a single process anew, too
    assert distributed.launch() == distributed.group.Launch(may_restart=True)
    with pytest.raises(ConfigError, match="add --out FOLDER"):
        tiny.api.new_folder(None, "digits-m")


def test_a_group_of_someone_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has no store of ours, and what the first process does for all, each does by itself there."""
    for name, value in {"is_initialized": True, "get_world_size": 2, "get_rank": 1}.items():
        monkeypatch.setattr(torch.distributed, name, lambda value=value: value)
    with pytest.raises(ConfigError, match="initialised already: leave that to ssole, and start the processes by tor"):
        tiny.start(tmp_path / "run")
    assert list(tmp_path.iterdir()) == []
    assert distributed.on_rank_0(lambda: "done") == "done"
    assert distributed.collect("value") == ["value"]


def hang_at_the_end() -> None:
    """Fail in the group, as a process does whose group NCCL would not let it leave."""
    dist, group = torch.distributed, distributed.group
    with (
        mock.patch.object(dist, "destroy_process_group", threading.Event().wait),
        mock.patch.object(group, "_PATIENCE", 0.1),
        pytest.raises(KeyError, match="seen"),
        distributed.processes(60),
    ):
        raise KeyError("seen")


def test_an_error_is_seen_though_the_group_cannot_be_left() -> None:
    for process in ranks.start(2, hang_at_the_end):
        process.join(timeout=60)
        assert process.exitcode == 0


def test_what_the_first_process_fails_at_is_no_lost_contact() -> None:
    lost = distributed.group._is_lost_contact
    assert lost(RuntimeError("[gloo/transport/tcp/pair.cc] Connection closed by peer"))
    assert lost(torch.distributed.DistNetworkError("the client socket has timed out"))
    assert not lost(distributed.ElsewhereError("the first process failed: ConfigError: ... Connection refused"))
    assert not lost(RuntimeError("shapes do not fit"))
