from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import ranks
from ssole import distributed
from ssole.config import ConfigError
from ssole.distributed import agreement


def fail() -> None:
    raise ValueError("no more")


def work(folder: Path) -> None:
    with distributed.processes(60):
        rank = distributed.rank()
        assert distributed.world_size() == 2
        # the first one alone works, as if there were no others, and both get the result
        sizes = distributed.on_rank_0(lambda: [distributed.world_size(), (folder / f"by {rank}").write_text("x")])
        assert sizes == [1, 1]
        assert distributed.collect({"rank": rank}) == [{"rank": 0}, {"rank": 1}]
        assert distributed.maximum(rank * 15) == 15
        with pytest.raises(ValueError if rank == 0 else distributed.ElsewhereError, match="no more"):
            distributed.on_rank_0(fail)
        tensors = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(7), "c": torch.ones(2, dtype=torch.bool)}
        tensors |= {"none": torch.empty(0, 3, dtype=torch.float64)}
        got = distributed.broadcast(tensors if rank == 0 else {})
        assert got.keys() == tensors.keys()
        assert all(
            torch.equal(got[name], tensor) and got[name].dtype == tensor.dtype for name, tensor in tensors.items()
        )
        with distributed.first_on_each_node():
            assert (folder / "first").exists() == (rank == 1)
            (folder / "first").touch()
        distributed.collect(None)
    with distributed.processes(60):  # a second group in the same processes
        assert distributed.collect(rank) == [0, 1]
    assert distributed.world_size() == 1


def test_two_processes_agree(tmp_path: Path) -> None:
    ranks.run(2, work, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["by 0", "first"]


def test_one_process_agrees_with_itself() -> None:
    tensors = {"a": torch.ones(2)}
    assert agreement.on_rank_0(lambda: (1, 2)) == (1, 2)
    assert agreement.collect("x") == ["x"]
    assert agreement.maximum(3) == 3
    assert agreement.broadcast(tensors) == tensors
    with agreement.first_on_each_node():
        assert agreement.collect(None) == [None]


def test_each_of_many_processes_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[torch.device] = []
    of_all = ["GPU-a", "GPU-b", "GPU-c", "GPU-d"]
    monkeypatch.setattr(torch.cuda, "set_device", used.append)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="GPU-b"))
    monkeypatch.setattr(agreement, "collect", lambda value: of_all)
    for name, value in ranks.environment(1, 4, 29500).items():
        monkeypatch.setenv(name, value)
    cuda = torch.device("cuda")
    assert distributed.own_device(torch.device("cpu")) == torch.device("cpu")
    with pytest.raises(ConfigError, match="cuda:0 is one GPU, and 4 processes"):
        distributed.own_device(torch.device("cuda", 0))
    for count, own in ((1, 0), (4, 1)):  # one, as `srun --gpus-per-task=1` shows it
        monkeypatch.setattr(torch.cuda, "device_count", lambda count=count: count)
        assert distributed.own_device(cuda) == used.pop() == torch.device("cuda", own)
    of_all[3] = "GPU-b"
    with pytest.raises(ConfigError, match=r"processes \[1, 3\] have one GPU, GPU-b: start one process for each GPU"):
        distributed.own_device(cuda)
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ConfigError, match="4 processes were started on a machine with 2 GPUs"):
        distributed.own_device(cuda)
    assert not used
