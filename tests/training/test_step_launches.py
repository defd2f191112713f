"""The training step on fake CUDA tensors: nothing in it waits for the host, and it launches few kernels.

`benchmarks/launches.py` counts. A ceiling that breaks says which operators came in: run it with --operators.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

import tiny
from ssole.config import load
from ssole.losses import SSOLELoss
from ssole.training.feed import Feed, make_plan
from ssole.training.step import Learner

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
CEILINGS = {"views": 110, "loss": 200, "optimizer": 330}


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch, fake_cuda_tensors: None) -> ModuleType:
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    return importlib.import_module("launches")


@pytest.mark.parametrize(
    "name",
    ["V = 2", "V = 4", "V = 8", "V = 2 + 2, of 32 and 24 px", "V = 4, temperature 0.2", "V = 4, loss of cifar10"],
)
def test_a_step_launches_few_kernels(launches: ModuleType, name: str) -> None:
    counted = launches.launches(launches.settings(**launches.SETTINGS[name]))
    groups = 2 if "+" in name else 1
    ceilings = {**CEILINGS, "views": groups * CEILINGS["views"]}
    if "temperature" in name:
        ceilings["loss"] += 10  # for the kernel and its slope
    assert counted.waits == []
    assert counted.flops["encoder"] > 10 * counted.flops["views"] > 0
    assert {part: counted.totals[part] for part in ceilings if counted.totals[part] > ceilings[part]} == {}


def test_learning_rates_are_on_the_device_as_in_a_captured_step(launches: ModuleType) -> None:
    kinds = [launches.settings(cuda_graph=kind) for kind in ("auto", "never")]
    auto, never = (launches.launches(config).by_part["optimizer"] for config in kinds)
    added = {name: count - never[name] for name, count in auto.items() if count != never[name]}
    assert added == {"mul": 1, "rsub": 1, "neg": 1}  # of the rate, by Muon


@pytest.mark.parametrize("name", ["ssole", "supervised", "a module"])
def test_from_images_to_the_update_nothing_waits(
    launches: ModuleType, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1 << 30, 1 << 30))
    loss = SSOLELoss() if name == "a module" else None  # which would look at values
    config = tiny.config(**{"loss.name": "ssole" if loss else name, "augment.early_size": 6})
    images = torch.from_numpy(tiny.images()).permute(0, 3, 1, 2)
    labels = np.arange(tiny.IMAGES) % 2
    with launches.fake_cuda():
        store = SimpleNamespace(images=torch.zeros(images.shape, dtype=torch.uint8), hint=lambda: None)
        learner = Learner(config, launches.DEVICE, loss=loss, labels=labels, images=tiny.IMAGES)
        learner.go_on_from(1)
        with launches.Launches() as counter:
            for step, epoch, ids, batch in Feed(store, launches.DEVICE).batches(make_plan(config, tiny.IMAGES), 0):
                learner.step(batch, ids, epoch=epoch, lr=0.1, early=step < 2)
                if step == 0:
                    counter.waits.clear()  # of what is kept for later steps
                if epoch == 1:
                    break
    assert counter.waits == []


@pytest.mark.parametrize("recipe", ["cifar10-speedrun", "cifar10", "small-images-resnet18"])
def test_what_is_measured_while_training_costs_little(launches: ModuleType, recipe: str) -> None:
    """Under 1 % of the steps between two lines of the log; and of kNN accuracy, every 2,000 steps."""
    normalisation = {"augment.mean": (0.5, 0.5, 0.5), "augment.std": (0.25, 0.25, 0.25)}
    config = load(recipe, precision="bfloat16", cuda_graph="never", **normalisation)
    step = sum(launches.launches(config).flops.values())
    assert launches.knn_flops(config) < 0.01 * 2000 * step
    assert config.knn_every is None
    n, dims = config.batch_size, config.projector.dim
    on_gpu, on_host = 67e12, 4e9  # FLOP/s in float64: an H200, and a slow host
    eigenvalues, gram = 4 / 3 * n**3, 2 * n**2 * dims
    assert eigenvalues / on_host + 10 * gram / on_gpu < 0.01 * config.log_every * 0.019  # seconds; 19 ms is the goal


def test_a_step_copies_nothing_from_the_host(launches: ModuleType) -> None:
    """Not even from pinned memory: a CUDA graph would copy from there again, when something else is there."""
    for changes in ({}, {"augment.crops": [{"count": 4, "size": 32}], "loss.temperature": 0.2}):
        counted = launches.launches(launches.settings(**changes))
        assert counted.copies == []
        assert counted.waits == []


# What counts is right


def test_the_counter_sees_all_that_makes_the_host_wait(launches: ModuleType) -> None:
    waits = {
        "_local_scalar_dense": lambda x: float(x.sum()),
        "is_nonzero": lambda x: bool((x > 0).any()),
        "copy from cpu to cuda": lambda x: torch.tensor([1.0], device=x.device),
        "copy from cuda to cpu": lambda x: x.cpu(),
        "copy_ between host and device": lambda x: x.copy_(torch.zeros(4, 4)),
        "_linalg_eigh": lambda x: torch.linalg.eigh(x),
        "index_put_ by a mask": lambda x: x.index_put_((x > 0,), x.new_zeros(())),
    }
    with launches.fake_cuda():
        x = torch.zeros(4, 4, device=launches.DEVICE)
        for expected, wait in waits.items():
            with launches.Launches() as counter:
                wait(x)
            assert [w.removeprefix("other: ") for w in counter.waits] in ([expected], ["_local_scalar_dense"])
        with launches.Launches() as counter:
            x @ x + x.mT[:2].reshape(4, 2).sum() * 2.0
        assert counter.waits == []
        with pytest.raises(Exception, match="nonzero"), launches.Launches() as counter:
            x[x > 0]
        assert counter.waits == ["other: index by a mask"]


def test_the_counter_counts_kernels_and_not_views(launches: ModuleType) -> None:
    with launches.fake_cuda(), launches.Launches() as counter:
        x = torch.empty(4, 8, device=launches.DEVICE)
        y = x.t()[1:].expand(7, 4) * 2 + 1  # two
        torch._foreach_mul_([y] * 111, 2.0)  # two, as one launch takes 110 tensors
        y.cpu()  # one
        torch.ones(3) + 1  # on the host
    assert counter.by_part["other"].total() == 5


def test_the_counter_counts_flops_and_bytes(launches: ModuleType) -> None:
    with launches.fake_cuda(), launches.Launches() as counter:
        x, y = torch.empty(4, 8, device=launches.DEVICE), torch.empty(8, 3, device=launches.DEVICE)
        x @ y
    assert counter.flops["other"] == 2 * 4 * 8 * 3
    assert counter.bytes["other"] == 4 * (4 * 8 + 8 * 3 + 4 * 3)


def test_the_walk_of_the_graph_gives_the_gradients_of_autograd(launches: ModuleType) -> None:
    expected, walked = (Learner(tiny.config(), torch.device("cpu")) for _ in range(2))

    views = [torch.randn(4, 2, 3, 8, 8)]
    expected.loss_terms(expected.embedder(views))["loss"].backward()
    launches.backward(walked.loss_terms(walked.embedder(views))["loss"])
    for a, b in zip(expected.encoder.parameters(), walked.encoder.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)
