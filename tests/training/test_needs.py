"""Estimates of memory and disk, against what real tensors take, and what is refused."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from ssole.config import ConfigError
from ssole.memory import available_memory, total_memory
from ssole.models.backbone import create_encoder
from ssole.runtime import forget_peak_memory, peak_memory
from ssole.training.needs import checkpoint_bytes, require_memory, step_bytes

CPU = torch.device("cpu")
VIT = {
    "backbone": "vit_tiny_patch16_224",
    "backbone_args": {"img_size": 32, "patch_size": 4, "depth": 4, "embed_dim": 96, "num_heads": 2},
}
RESNET = {"backbone": "resnet18", "backbone_args": {"layers": [1, 1, 1, 1]}}
CROPS = [{"count": 2, "size": 32}, {"count": 1, "size": 16}]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "crops"), [(RESNET, CROPS), (VIT, CROPS[:1])], ids=["ResNet, two crop groups", "vision transformer"]
)
def test_the_memory_of_a_step_is_about_what_the_process_takes(model: dict[str, Any], crops: list[Any]) -> None:
    """Of two batch sizes, as the process itself takes memory too."""
    small, large = (tiny.config(model=model, augment__crops=crops, batch_size=size) for size in (16, 80))
    expected = (step_bytes(large, CPU) or 0) - (step_bytes(small, CPU) or 0)
    encoder, peaks = create_encoder(small).train(), []
    for config in (small, small, large):  # the first sets things up
        gc.collect()
        if not forget_peak_memory(CPU):
            pytest.skip("the system does not tell the peak")
        views = [torch.rand(c.count * config.batch_size, 3, c.size, c.size) for c in config.augment.crops]
        torch.cat([encoder(x) for x in views]).sum().backward()
        peaks.append(peak_memory(CPU) or 0)
        del views
    assert expected > 100 << 20
    assert 0.7 < (peaks[2] - peaks[1]) / expected < 2  # 1.2 to 1.7: convolutions take memory of their own


def test_bfloat16_takes_about_half() -> None:
    sizes = [step_bytes(tiny.config(precision=p, batch_size=4096), CPU) for p in ("float32", "bfloat16")]
    assert sizes[0] is not None
    assert sizes[1] is not None
    assert 0.5 < sizes[1] / sizes[0] < 0.7


def test_a_run_that_cannot_fit_is_refused_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"a step on 1000000000 images needs about .* lower --batch-size"):
        tiny.start(tmp_path / "run", batch_size=10**9)
    assert not (tmp_path / "run").exists()


def test_a_run_that_may_not_fit_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ssole.training.needs.available_memory", lambda: 1 << 10)
    with pytest.warns(UserWarning, match=r"and 1.* of .* are free on cpu"):
        require_memory(tiny.config(), CPU)


def test_a_network_that_cannot_be_counted_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(config: Any) -> None:
        raise NotImplementedError("not on meta tensors")

    monkeypatch.setattr("ssole.training.needs.create_encoder", fail)
    monkeypatch.setattr("ssole.training.needs._COUNTED", {})
    assert step_bytes(tiny.config(), CPU) is None
    require_memory(tiny.config(), CPU)


def test_checkpoints_take_what_they_take(tmp_path: Path) -> None:
    """Weights and momentum of two checkpoints, and the final weights of the backbone."""
    run = tiny.start(tmp_path / "run", steps=10)
    taken = sum(path.stat().st_size for path in run.path.rglob("*.safetensors"))
    assert checkpoint_bytes(create_encoder(run.config), 2) == pytest.approx(taken, rel=0.25)


def test_what_is_available_is_a_part_of_all() -> None:
    assert 0 < available_memory() <= total_memory()
