"""LossWatch: the first value that is not finite is named, wherever it looks."""

from __future__ import annotations

import math

import pytest
import torch

from ssole.training import watch as watch_module
from ssole.training.watch import LossWatch, NonFiniteLossError


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_watch_names_the_first_step_wherever_it_looks(device: str) -> None:
    watch = LossWatch(torch.device(device))
    watch.add(1, torch.tensor(0.5), "the loss")
    watch.check()
    watch.check()
    watch.add(2, torch.tensor(0.5), "the loss")
    with pytest.raises(NonFiniteLossError, match=r"^step 3: the loss is inf\. ") as error:  # noqa: PT012
        watch.add(3, torch.tensor(math.inf), "the loss")
        assert device == "cuda"  # the CPU has looked already
        watch.add(4, torch.tensor(math.nan), "the loss")
        watch.check()
    assert error.value.step == 3


def test_one_tensor_that_is_overwritten_in_place_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a CUDA graph overwrites its loss; also when more steps pass than the ring has places."""
    monkeypatch.setattr(watch_module, "_CAPACITY", 8)
    watch, loss = LossWatch(torch.device("cuda")), torch.zeros(())
    for step in range(1, 30):
        loss.fill_(math.nan if step in (27, 28) else step)
        watch.add(step, loss, "the loss")
    with pytest.raises(NonFiniteLossError, match=r"^step 27: the loss is nan"):
        watch.check()
    watch.check()
    watch.add(30, loss.fill_(1.0), "the loss")
    watch.check()


def test_a_ring_that_is_full_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch_module, "_CAPACITY", 2)
    watch = LossWatch(torch.device("cuda"))
    watch.add(1, torch.tensor(math.inf), "the loss")
    watch.add(2, torch.tensor(1.0), "the loss")
    with pytest.raises(NonFiniteLossError, match=r"^step 1: "):
        watch.add(3, torch.tensor(1.0), "the loss")
