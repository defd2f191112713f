"""StepGraph without a GPU: a step is recorded operator by operator, and replayed as a CUDA graph replays kernels.

What a step takes from Python's variables is then as it was when it was recorded, and only what lies in tensors changes.
"""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import tiny
from ssole.config import ConfigError
from ssole.runtime import torch_state
from ssole.training import graph as graph_module
from ssole.training.graph import WARM_UP, StepGraph, lent, wants_graph
from ssole.training.optim import set_learning_rate, use_tensor_rates
from ssole.training.step import Learner, StepResult
from ssole.training.watch import LossWatch, NonFiniteLossError

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
MUON = {"optim__name": "muon", "optim__lr": 0.05, "optim__weight_decay": 0.1}
IDS = torch.arange(4)
Capture = Callable[[Callable[[], StepResult], torch.device], Callable[[], StepResult]]


class Recorder(TorchDispatchMode):
    """Record of the operators in a context, which can be taken again on the same tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, out))
        return out

    def replay(self) -> None:
        for func, args, kwargs, out in self.calls:
            again = func(*args, **kwargs)
            for old, new in zip(tree_leaves(out), tree_leaves(again), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class Captured:
    """A learner whose steps on views are captured."""

    def __init__(self, capture: Capture | None = None, *, required: bool = False) -> None:
        self.learner = Learner(tiny.config(**MUON), CPU)
        self.learner.watch = LossWatch(CUDA)  # which does not look at once
        use_tensor_rates(self.learner.optimizer, CPU)
        self.captures, self.capture, self.waits = 0, capture or self.record, list[str]()
        self.graph: StepGraph[StepResult] = StepGraph(self.take, self.learner.watch, required=required)
        self.learner._graph = self.graph

    def take(self, images: torch.Tensor, ids: torch.Tensor, epoch: int) -> StepResult:
        return self.learner._learn([images])

    def with_waits(self, body: Callable[[], StepResult]) -> tuple[StepResult, list[str]]:
        return body(), self.waits

    def record(self, body: Callable[[], StepResult], device: torch.device) -> Callable[[], StepResult]:
        self.captures += 1
        state = [t for t in tree_leaves(self.learner.optimizer.state_dict()) if isinstance(t, torch.Tensor)]
        watch = self.learner.watch
        state += [*self.learner.modules.state_dict().values(), watch._buffer, watch._position]
        before = [tensor.clone() for tensor in state]
        recorder = Recorder()
        with recorder:
            result = body()
        with torch.no_grad():  # a CUDA graph records without taking the step
            for tensor, kept in zip(state, before, strict=True):
                tensor.copy_(kept)

        def replay() -> StepResult:
            with torch.no_grad():
                recorder.replay()
            return result

        return replay

    def step(self, views: torch.Tensor, lr: float) -> StepResult:
        set_learning_rate(self.learner.optimizer, lr)
        stand_ins = {"on_side_stream": lambda body, _: body(), "captured": self.capture, "with_waits": self.with_waits}
        with mock.patch.multiple(graph_module, **stand_ins):
            result = self.graph.step(self.learner.steps_done, views, IDS, 0)
        self.learner.steps_done += 1
        return result


def plain() -> Learner:
    """A learner whose steps are launched, with equal rounding: Newton-Schulz in bfloat16 would enlarge differences."""
    learner = Learner(tiny.config(**MUON), CPU)
    use_tensor_rates(learner.optimizer, CPU)
    return learner


def views_of(step: int) -> torch.Tensor:
    return torch.randn(4, 2, 3, 8, 8, generator=torch.Generator().manual_seed(step))


def rate_of(step: int) -> float:
    return 0.05 / (1 + step)


def require_equal(one: Learner, other: Learner) -> None:
    for (name, a), b in zip(one.modules.state_dict().items(), other.modules.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, msg=name)


def test_replayed_steps_are_those_that_are_launched() -> None:
    torch.set_num_threads(1)
    launched, captured = plain(), Captured()
    for step in range(WARM_UP + 6):
        expected = launched.step_on_views([views_of(step)], lr=rate_of(step))
        found = captured.step(views_of(step), rate_of(step))
        torch.testing.assert_close(found.terms["loss"], expected.terms["loss"], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.z_BVD, expected.z_BVD, rtol=1e-3, atol=1e-4)
    assert captured.captures == 1
    require_equal(launched, captured.learner)
    captured.learner.check_weights()


def test_weights_that_were_moved_are_captured_anew() -> None:
    torch.set_num_threads(1)
    launched, captured = plain(), Captured()
    for step in range(2 * WARM_UP + 4):
        launched.step_on_views([views_of(step)], lr=rate_of(step))
        captured.step(views_of(step), rate_of(step))
        if step > WARM_UP:
            with lent(captured.learner.encoder.backbone, captured.learner.forget_graph) as backbone:
                if step == WARM_UP + 2:
                    backbone.double().float()  # new memory, as by backbone.cpu() and back on a GPU
    assert captured.captures == 2
    require_equal(launched, captured.learner)


def test_cudnn_tries_no_algorithms_while_a_backbone_is_lent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    with lent(nn.Linear(2, 2), lambda: None):
        assert not torch.backends.cudnn.benchmark
    assert torch.backends.cudnn.benchmark


def test_images_of_another_dtype_are_launched() -> None:
    def mean(images: torch.Tensor, ids: torch.Tensor, epoch: int) -> torch.Tensor:
        return images.float().mean()

    stand_ins = {"on_side_stream": lambda body, _: body(), "captured": lambda body, _: body}
    stand_ins["with_waits"] = lambda body: (body(), [])
    graph, small = StepGraph(mean, LossWatch(CUDA)), torch.full((4, 3, 2, 2), 200, dtype=torch.uint8)
    with mock.patch.multiple(graph_module, **stand_ins):
        for step in range(WARM_UP + 1):
            graph.step(step, small, IDS, 0)
        assert graph.is_captured
        large = torch.full((4, 3, 2, 2), 30_000, dtype=torch.uint16)
        assert graph.step(WARM_UP + 1, large, IDS, 0) == 30_000
        assert graph.step(WARM_UP + 2, small, IDS, 0) == 200
    assert graph.is_captured


@pytest.mark.parametrize("looked_at", [0, WARM_UP])
def test_restored_weights_are_captured_anew(looked_at: int) -> None:
    """As the guardian goes back, and has steps looked at until the one that failed, which are launched."""
    torch.set_num_threads(1)
    launched, captured = plain(), Captured()
    failed, back = WARM_UP + 2, 2
    for step in range(failed):
        launched.step_on_views([views_of(step)], lr=rate_of(step))
        captured.step(views_of(step), rate_of(step))
    captured.learner.modules.load_state_dict(launched.modules.state_dict())
    state = copy.deepcopy(launched.optimizer.state_dict()["state"])
    captured.learner.optimizer.load_state_dict(captured.learner.optimizer.state_dict() | {"state": state})
    for learner in (launched, captured.learner):
        learner.go_on_from(back)
    for step in range(back, failed + WARM_UP + 3):
        launched.step_on_views([views_of(step)], lr=rate_of(step))
        if step < back + looked_at:
            captured.learner.step_on_views([views_of(step)], lr=rate_of(step))
        else:
            captured.step(views_of(step), rate_of(step))
    assert captured.captures == 2
    require_equal(launched, captured.learner)


def test_each_crop_size_is_captured_once() -> None:
    torch.set_num_threads(1)
    launched, captured = plain(), Captured()
    early, later = 6, WARM_UP + 2
    for step in range(2 * later):
        views = views_of(step)[..., :early, :early] if step < later else views_of(step)
        if step in (0, later):
            captured.learner._use_recipe(tiny.config().augment)  # as a step does that sees other crops
        launched.step_on_views([views], lr=rate_of(step))
        captured.step(views, rate_of(step))
    assert captured.captures == 2
    require_equal(launched, captured.learner)


@pytest.mark.parametrize("bad", [1, WARM_UP, WARM_UP + 1, WARM_UP + 4])
def test_the_first_step_that_is_not_finite_is_named(bad: int) -> None:
    torch.set_num_threads(1)
    factor = torch.ones(())

    class Scaled(nn.Module):
        def forward(self, z: torch.Tensor) -> torch.Tensor:
            return factor * z.square().mean()

    captured = Captured()
    captured.learner.loss = Scaled()
    for step in range(WARM_UP + 6):
        factor.fill_(float("nan") if step in (bad, bad + 1) else 1.0)
        captured.step(views_of(step), 0.01)
    with pytest.raises(NonFiniteLossError, match=rf"^step {bad + 1}: the loss is nan"):
        captured.learner.watch.check()


def test_a_ring_that_is_nearly_full_is_looked_at_before_a_capture() -> None:
    torch.set_num_threads(1)
    captured = Captured()
    for step in range(WARM_UP):
        captured.step(views_of(step), 0.01)
    watch = captured.learner.watch
    while watch.room > 1:  # a step adds two values
        watch.add(WARM_UP, torch.ones(()), "a value")
    captured.step(views_of(WARM_UP), 0.01)
    assert captured.captures == 1
    assert watch.count == 2


def test_warm_up_and_capture_share_a_stream_and_let_other_threads_work(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    second_gpu = torch.device("cuda:1")

    class Stream:
        def __init__(self, device: torch.device) -> None:
            assert device == second_gpu
            self.device_index = 1

        def wait_stream(self, other: Any) -> None:
            calls.append(("waits for", other))

    class Graph:
        def replay(self) -> None:
            calls.append("replay")

    def context(*arguments: Any, **options: Any) -> nullcontext[None]:
        calls.append((arguments, options))
        return nullcontext()

    usual = Stream(second_gpu)
    for name, stand_in in {
        "Stream": Stream, "CUDAGraph": Graph, "graph": context, "stream": context, "device": context,
        "current_stream": {second_gpu: usual}.__getitem__, "graph_pool_handle": lambda: (0, 7),
        "default_generators": [None, mock.Mock()],
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, stand_in)
    graph_module._side_stream.cache_clear()
    assert [graph_module.on_side_stream(lambda: 5, second_gpu) for _ in range(2)] == [5, 5]
    (_, ((side,), _), _), second = calls[:3], calls[3:]
    assert calls[:3] == second == [("waits for", usual), ((side,), {}), ("waits for", side)]
    calls.clear()
    assert graph_module.captured(lambda: 7, second_gpu)() == 7
    device, current, ((graph,), options), replayed = calls
    assert device == ((second_gpu,), {})
    assert current == ((usual,), {})  # to which a capture that fails would not go back by itself
    assert isinstance(graph, Graph)
    assert options == {"pool": (0, 7), "stream": side, "capture_error_mode": "thread_local"}
    assert replayed == "replay"
    graph_module._side_stream.cache_clear()


def test_a_capture_that_fails_leaves_steps_as_they_were() -> None:
    torch.set_num_threads(1)

    def refuse(body: Callable[[], StepResult], device: torch.device) -> Callable[[], StepResult]:
        try:
            raise RuntimeError("operation not permitted when stream is capturing")
        finally:
            raise RuntimeError("operation failed due to a previous error during capture")

    launched, captured = plain(), Captured(capture=refuse)
    for step in range(WARM_UP + 3):
        launched.step_on_views([views_of(step)], lr=0.01)
        if step == WARM_UP:
            with pytest.warns(
                UserWarning, match="could not be captured as a CUDA graph, and is launched: operation not permitted"
            ):
                captured.step(views_of(step), 0.01)
        else:
            captured.step(views_of(step), 0.01)
    require_equal(launched, captured.learner)
    required = Captured(capture=refuse, required=True)
    for step in range(WARM_UP):
        required.step(views_of(step), 0.01)
    with pytest.raises(RuntimeError, match="cannot be captured as a CUDA graph: operation not permitted"):
        required.step(views_of(WARM_UP), 0.01)


def test_a_step_that_waits_for_the_gpu_is_never_captured() -> None:
    """A capture that fails would cost the memory of a step."""
    torch.set_num_threads(1)
    launched, captured = plain(), Captured()
    captured.waits = ["mine.py:7"]
    for step in range(WARM_UP + 3):
        launched.step_on_views([views_of(step)], lr=0.01)
        if step == WARM_UP - 1:
            with pytest.warns(UserWarning, match=r"is launched: the host waits for the GPU, at mine.py:7"):
                captured.step(views_of(step), 0.01)
        else:
            captured.step(views_of(step), 0.01)
    assert captured.captures == 0
    require_equal(launched, captured.learner)
    required = Captured(required=True)
    required.waits = ["mine.py:7"]
    for step in range(WARM_UP - 1):
        required.step(views_of(step), 0.01)
    with pytest.raises(RuntimeError, match=r"cannot be captured as a CUDA graph: the host waits for the GPU"):
        required.step(views_of(WARM_UP - 1), 0.01)


def test_waits_are_found_by_torchs_debug_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[object] = []
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)

    def body() -> int:
        assert modes == ["warn"]
        warnings.warn("called a synchronizing CUDA operation (Triggered internally at f.cpp:1.)", stacklevel=1)
        warnings.warn("another matter", stacklevel=1)
        return 5

    with pytest.warns(UserWarning, match="another matter") as others:
        result, waits = graph_module.with_waits(body)
    assert len(others) == 1
    assert result == 5
    assert [wait.partition(":")[0] for wait in waits] == ["test_graph.py"]
    assert modes == ["warn", 0]
    with pytest.raises(KeyError):
        graph_module.with_waits(lambda: {}["missing"])
    assert modes[-1] == 0


@pytest.mark.parametrize("ended", [False, True], ids=["torch 2.11", "newer torch"])
def test_memory_and_random_numbers_are_as_before_a_capture_that_failed(
    ended: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    capturing = set[tuple[int, int]]()

    class Generator:
        state = "free"

        def clone_state(self) -> str:
            return self.state

        def graphsafe_set_state(self, state: str) -> None:
            self.state = state

    generator = Generator()

    @contextmanager
    def capture(graph: object, *, pool: tuple[int, int], **options: object) -> Iterator[None]:
        capturing.add(pool)
        generator.state = "capturing"
        try:
            yield
            generator.state = "free, and moved"
        finally:
            if ended or generator.state != "capturing":
                capturing.remove(pool)

    def end(device: int, pool: tuple[int, int]) -> None:
        assert device == 2
        if pool not in capturing:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        capturing.remove(pool)

    fakes: dict[str, Any] = {
        "CUDAGraph": mock.Mock,
        "current_stream": lambda device: None,
        "device": nullcontext,
        "stream": nullcontext,
        "graph": capture,
        "graph_pool_handle": lambda: (0, 7),
        "default_generators": [None, None, generator],
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", end, raising=False)
    monkeypatch.setattr(graph_module, "_side_stream", lambda device: SimpleNamespace(device_index=2))
    with pytest.raises(KeyError):
        graph_module.captured(lambda: {}["missing"], CUDA)
    assert (generator.state, capturing) == ("free", set())
    assert graph_module.captured(lambda: 5, CUDA)() == 5
    assert generator.state == "free, and moved"


@pytest.mark.cuda
@pytest.mark.skipif("not torch.cuda.is_available()", reason="needs an NVIDIA GPU")
def test_replayed_steps_are_those_that_are_launched_on_a_gpu() -> None:
    losses = [losses_of_steps(CUDA, kind) for kind in ("never", "always")]
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


def losses_of_steps(device: torch.device, kind: str) -> list[float]:
    """Losses of steps over several epochs and learning rates, in float32, that are captured as `kind` says."""
    images, found = torch.from_numpy(tiny.images()).permute(0, 3, 1, 2).contiguous().to(device), []
    with torch_state(deterministic=False):
        config = tiny.config(**MUON, cuda_graph=kind, precision="float32")
        learner = Learner(config, device, images=len(images))
        for step in range(12):
            ids = torch.arange(4 * step, 4 * step + 4, device=device) % len(images)
            terms = learner.step(images.index_select(0, ids), ids, epoch=step // 5, lr=rate_of(step)).terms
            found.append(float(terms["loss"]))
        learner.watch.check()
        assert learner.is_captured == (kind == "always")
        learner.forget_graph()
    return found


@pytest.mark.cuda
@pytest.mark.skipif("not torch.cuda.is_available()", reason="needs an NVIDIA GPU")
def test_memory_and_random_numbers_work_on_a_gpu_after_a_capture_that_failed() -> None:
    x = torch.ones(5, device=CUDA)
    with pytest.raises(RuntimeError):
        graph_module.captured(lambda: float((x + torch.rand_like(x)).sum()), CUDA)
    torch.cuda.empty_cache()
    assert torch.rand(5, device=CUDA).sum() > 0
    replay = graph_module.captured(lambda: x * 2, CUDA)
    assert replay().tolist() == [2.0] * 5


def test_ctrl_c_in_a_capture_is_no_failure_of_it() -> None:
    def stop(body: Callable[[], StepResult], device: torch.device) -> Callable[[], StepResult]:
        try:
            raise KeyboardInterrupt
        finally:
            raise RuntimeError("operation failed due to a previous error during capture")

    captured = Captured(capture=stop)
    for step in range(WARM_UP):
        captured.step(views_of(step), 0.01)
    with pytest.raises(KeyboardInterrupt):
        captured.step(views_of(WARM_UP), 0.01)


def test_graphs_are_wanted_on_cuda_with_muon() -> None:
    muon, sgd = (Learner(tiny.config(optim__name=name), CPU).optimizer for name in ("muon", "sgd"))
    assert wants_graph(tiny.config(), CUDA, muon)
    assert not wants_graph(tiny.config(), CUDA, sgd)
    assert not wants_graph(tiny.config(), CPU, muon)
    assert not wants_graph(tiny.config(cuda_graph="never"), CUDA, muon)
    assert not wants_graph(tiny.config(), CUDA, muon, own_code=True)  # which may change with Python's variables
    assert wants_graph(tiny.config(cuda_graph="always"), CUDA, muon, own_code=True)
    with pytest.raises(ConfigError, match=r"cuda_graph = always needs .* got 1 processes, cpu and muon: use auto"):
        wants_graph(tiny.config(cuda_graph="always", **MUON), CPU, muon)


def test_a_graph_that_is_required_needs_images_of_one_size_in_a_table() -> None:
    learner = Captured().learner
    learner.config = dataclasses.replace(learner.config, cuda_graph="always")
    learner.steps_done = 1
    with pytest.raises(
        ConfigError, match=r"cuda_graph = always needs images of one size, .* at most 1.0 GiB\): use auto"
    ):
        learner._may_replay([torch.zeros(3, 8, 8), torch.zeros(3, 9, 8)], 0)
