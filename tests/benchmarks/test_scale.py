"""The model of step times: the volume that it states is what processes send."""

from __future__ import annotations

import importlib
import json
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import pytest
import torch

import ranks
import tiny
from ssole import distributed
from ssole.training.step import Learner

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
CROPS = [{"count": 2, "size": 8}, {"count": 1, "size": 6}]
CASES: list[dict[str, Any]] = [{}, {"augment__crops": CROPS, "accumulate": 2}]


@pytest.fixture
def scale(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    return importlib.import_module("scale")


def count(folder: Path) -> None:
    """Write calls and bytes of the collectives of one step, without those of DistributedDataParallel."""
    found = []
    dist = torch.distributed
    plain = {"all_gather": dist.all_gather, "all_reduce": dist.all_reduce}

    def counted(name: str) -> Any:
        def collective(*arguments: Any, **options: Any) -> Any:
            tensor = arguments[-1]
            counts.update(calls=1, bytes=tensor.nbytes)
            return plain[name](*arguments, **options)

        return collective

    with distributed.processes(60):
        for case in CASES:
            config = tiny.config(batch_size=8, **case)
            learner = Learner(config, torch.device("cpu"))
            images, ids = torch.from_numpy(tiny.images(4)).permute(0, 3, 1, 2), torch.arange(4)
            counts: Counter[str] = Counter()
            with mock.patch.multiple(dist, **{name: counted(name) for name in plain}):
                learner.step(images, ids, epoch=0, lr=0.1)
                distributed.maximum(0)
            found.append([counts["calls"], counts["bytes"]])
        if distributed.rank() == 0:
            (folder / "counts.json").write_text(json.dumps(found))


def test_the_stated_volume_is_what_is_sent(scale: ModuleType, tmp_path: Path) -> None:
    ranks.run(2, count, tmp_path)
    for case, counted in zip(CASES, json.loads((tmp_path / "counts.json").read_text()), strict=True):
        config = tiny.config(batch_size=8, **case)
        parts = scale.volume(config, 2)
        gradients = parts.pop("gradients")
        assert counted == [sum(part.calls for part in parts.values()), sum(part.bytes for part in parts.values())]
        learner = Learner(config, torch.device("cpu"))
        assert gradients.bytes == sum(parameter.nbytes for parameter in learner.encoder.parameters())


def test_a_latency_that_was_put_in_is_found(scale: ModuleType) -> None:
    config = scale.load("digits-m", **scale.SETTINGS)
    calls = {world: sum(part.calls for part in scale.volume(config, world).values()) for world in (2, 4)}
    compute = {1: 110.0, 2: 60.0, 4: 70.0}
    times = {world: compute[world] + 0.2 * calls.get(world, 0) for world in compute}
    fit = scale.fitted(times, compute, config)
    assert fit["latency_ms"] == pytest.approx(0.2)
    assert fit["predicted_ms"] == pytest.approx(times)


def test_the_paper_model(scale: ModuleType) -> None:
    gpu = scale.Gpu()
    small, large = scale.on_paper(8, 64, gpu), scale.on_paper(8, 512, gpu)
    assert small["compute"] == pytest.approx(64 * 2 / gpu.images_per_second)
    assert large["loss_share"] > small["loss_share"]
    assert small["total"] == pytest.approx(sum(small[name] for name in ("compute", "loss", "collectives", "gradients")))
    batch = scale.batch_for(0.05, 64, gpu)
    assert scale.on_paper(64, batch // 64, gpu)["loss_share"] > 0.05
    assert scale.on_paper(64, batch // 128, gpu)["loss_share"] <= 0.05
    assert scale.batch_for(1.0, 8, gpu) is None
