"""Compiled encoders: when a run compiles, that only the speed changes, and failures of the compiler."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from ssole import runtime
from ssole.config import ConfigError, load
from ssole.models import compile as compiling
from ssole.models.backbone import Encoder
from ssole.models.compile import compile_encoder, wants_compiling
from ssole.models.cpu import speed_up_compiled_batch_norms
from ssole.training.step import Learner
from ssole.training.stopping import Interrupted

needs_compiler = pytest.mark.skipif(not compiling.can_compile(), reason="torch.compile needs g++ and python3-dev")
CPU = torch.device("cpu")


def encoder(**overrides: Any) -> Encoder:
    return Learner(tiny.config(**overrides), CPU).encoder


# When a run compiles


@pytest.mark.parametrize(
    ("overrides", "steps", "wanted"),
    [
        ({}, 500, True),
        ({}, 499, False),
        ({"deterministic": True}, 500, False),
        ({"precision": "float32"}, 500, False),
        ({"augment__crops": [{"count": 2, "size": 8}, {"count": 2, "size": 65}]}, 500, False),
        ({"compile": "always"}, 1, True),
        ({"compile": "always", "deterministic": True}, 1, True),
        ({"compile": "never"}, 10_000, False),
    ],
)
def test_when_a_run_compiles(
    overrides: dict[str, Any], steps: int, wanted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiling, "can_compile", lambda: True)
    config = tiny.config(**{"deterministic": False, "precision": "bfloat16", **overrides})
    assert wants_compiling(config, encoder(), CPU, steps) is wanted


def test_auto_needs_a_compiler_batch_norms_and_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny.config(deterministic=False, precision="bfloat16")
    monkeypatch.setattr(compiling, "can_compile", lambda: True)
    assert wants_compiling(config, encoder(), CPU, 500)
    assert not wants_compiling(config, encoder(), torch.device("cuda"), 500)
    vit = encoder(model__backbone="vit_tiny_patch16_224", model__backbone_args={"img_size": 8, "patch_size": 4})
    assert not wants_compiling(config, vit, CPU, 500)
    monkeypatch.setattr(compiling, "can_compile", lambda: False)
    assert not wants_compiling(config, encoder(), CPU, 500)


@pytest.mark.parametrize("native", [True, False])
def test_the_demo_is_compiled_where_bfloat16_is_native(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "can_compile", lambda: True)
    monkeypatch.setattr(runtime, "_cpu_multiplies_bfloat16", lambda: native)
    config = load("digits-m")
    assert config.steps is not None
    assert wants_compiling(config, Learner(config, CPU).encoder, CPU, config.steps) is native


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")  # of torch's own, while compiling
@pytest.mark.parametrize("name", ["cifar10-cpu", "cifar10"])
def test_networks_of_recipes_compile_in_one_piece(name: str) -> None:
    """A break in the graph would make them slower than they were. digits-m has the network of cifar10-cpu."""
    config = load(name, batch_size=2, precision="bfloat16")
    network = Learner(config, CPU).encoder
    speed_up_compiled_batch_norms(network)
    torch.compiler.reset()
    network.compile(backend="aot_eager", fullgraph=True)
    with torch.autocast("cpu", torch.bfloat16):
        network(torch.randn(4, 3, 32, 32)).sum().backward()


# Only the speed changes


@pytest.mark.slow
@needs_compiler
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")  # of torch's own, while compiling
def test_a_compiled_run_is_that_of_the_plain_one_and_resumes_exactly(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"steps": 6}
    plain = tiny.start(tmp_path / "plain", compile="never", **settings)
    whole = tiny.start(tmp_path / "whole", compile="always", **settings)
    rows = [[row["loss"] for row in run.metrics] for run in (plain, whole)]
    assert len(rows[0]) == 6
    assert rows[1] == pytest.approx(rows[0], rel=1e-3)  # rounding, after five steps of learning
    assert rows[1][0] == pytest.approx(rows[0][0], rel=1e-4)

    def stop(_: object) -> dict[str, float]:
        raise KeyboardInterrupt

    with pytest.raises((KeyboardInterrupt, Interrupted)):
        tiny.start(tmp_path / "halves", compile="always", evaluators={3: stop}, checkpoint_every=2, **settings)
    halves = tiny.resume(tmp_path / "halves")
    assert halves.backbone_path.read_bytes() == whole.backbone_path.read_bytes()
    assert plain.backbone_path.read_bytes() != whole.backbone_path.read_bytes()  # it was compiled


def test_the_trial_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    learner = Learner(tiny.config(compile="always"), CPU)
    network = learner.encoder
    before = {name: value.clone() for name, value in network.state_dict().items()}
    monkeypatch.setattr(Encoder, "compile", lambda self, **_: None)
    assert learner.compile()
    assert all(p.grad is None for p in network.parameters())
    assert network.training
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_torchs_line_about_cuda_without_a_gpu_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("torch.utils.cpp_extension")

    def embed() -> torch.Tensor:
        logger.warning("No CUDA runtime is found, using CUDA_HOME='%s'", "/usr/local/cuda")
        logger.warning("another line")
        return torch.zeros(1)

    logger.addHandler(caplog.handler)
    try:
        assert compile_encoder(encoder(), [embed], required=False)
        assert {record.message for record in caplog.records} == {"another line"}
        embed()  # outside, it is not this package's to hide
    finally:
        logger.removeHandler(caplog.handler)
    assert "No CUDA runtime" in caplog.text


# Failures of the compiler


def fail() -> torch.Tensor:
    raise RuntimeError("C++ compile error\n\nCommand:\ng++ x.cpp\nx.cpp:1: fatal error: Python.h: No such file\n")


@pytest.mark.parametrize("where", ["when the encoder is called", "at once"])
def test_without_a_working_compiler_training_continues(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network = encoder()
    if where == "at once":  # as torch.compile does where it does not know the Python
        monkeypatch.setattr(Encoder, "compile", lambda *_, **__: fail())
    with pytest.warns(UserWarning, match=r"RuntimeError: x.cpp:1: fatal error: Python.h: No such file\): training"):
        assert not compile_encoder(network, [fail], required=False)
    images = torch.randn(4, 3, 8, 8)
    assert torch.equal(network(images), encoder()(images))


def test_a_required_compiler_that_fails_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"Python.h: No such file.*compile = never"):
        compile_encoder(encoder(), [fail], required=True)


def test_a_compiler_that_ctrl_c_ended_is_no_failure(recwarn: pytest.WarningsRecorder) -> None:
    assert not compile_encoder(encoder(), [fail], required=True, stopping=lambda: True)
    assert not recwarn


def test_lack_of_memory_is_not_a_failed_compiler() -> None:
    def exhaust() -> torch.Tensor:
        raise torch.OutOfMemoryError("2 GiB")

    with pytest.raises(torch.OutOfMemoryError):
        compile_encoder(encoder(), [exhaust], required=False)


@pytest.mark.parametrize(
    ("message", "gist"), [("", "no message"), ("\none\ntwo", "one"), ("a\nb: error: c", "b: error: c")]
)
def test_the_gist_of_a_message(message: str, gist: str) -> None:
    assert compiling._gist(message) == gist


def test_compiling_counts_in_the_seconds_but_not_in_the_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    monkeypatch.setattr(Learner, "compile", lambda *_, **__: time.sleep(1.0))
    run = tiny.start(tmp_path / "run", compile="always", steps=3)
    last = run.metrics[-1]
    assert last["seconds"] > 1.0
    assert last["images_per_second"] > 3 * 4 / (last["seconds"] - 0.9)
