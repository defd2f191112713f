"""StepGraph: a training step that is captured once as a CUDA graph, and then replayed without launching its kernels.

Images and ids are copied to where the captured step reads them. The learning rate is a number on the device, as is the
place where the loss watch writes. The rows of the views are drawn by epoch, at one place in memory.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import nn

from ssole import distributed
from ssole.config import ConfigError, PretrainConfig
from ssole.errors import one_line
from ssole.runtime import out_of_memory_reason, untuned_convolutions
from ssole.training.optim import Muon
from ssole.training.watch import LossWatch

WARM_UP = 3
"""Steps that are taken as they are before one is captured: libraries set themselves up in the first."""

# Most values that a step adds to the loss watch. Emptying the watch makes the host wait, which a capture forbids.
_ROOM = 16

_Result = TypeVar("_Result")
_Body = Callable[[], _Result]


def wants_graph(
    config: PretrainConfig, device: torch.device, optimizer: torch.optim.Optimizer, *, own_code: bool = False
) -> bool:
    """Whether steps are captured: on CUDA, with Muon, in one process and one part, unless the config says never.

    With `own_code`, a loss or backbone that the caller wrote, only if the config says always: a graph would repeat for
    ever what such code took from Python's variables in the captured step, such as a temperature that changes. It is a
    ConfigError if the config says always, and it is not possible.
    """
    whole = distributed.world_size() == 1 and config.accumulate == 1
    possible = device.type == "cuda" and isinstance(optimizer, Muon) and whole
    if config.cuda_graph == "always" and not possible:
        raise ConfigError(
            "cuda_graph = always needs one process, a CUDA device, Muon and accumulate = 1, got "
            f"{distributed.world_size()} processes, {device} and {config.optim.name}: use auto"
        )
    return possible and config.cuda_graph != "never" and (config.cuda_graph == "always" or not own_code)


class StepGraph(Generic[_Result]):
    """CUDA graph of a training step.

    The step is `take`, a function of images (B, C, H, W), ids (B,) and the number of the epoch, which adds its values
    to the `watch`. If it is `required`, a step that cannot be captured is an error. Otherwise steps go on as before,
    with a warning.
    """

    def __init__(
        self, take: Callable[[torch.Tensor, torch.Tensor, int], _Result], watch: LossWatch, *, required: bool = False
    ) -> None:
        self._take, self._watch, self._required = take, watch, required
        self._failed = False
        self._replay: _Body[_Result] | None = None
        self.reset()

    def reset(self) -> None:
        """Forget what was captured: other shapes, or state that is elsewhere in memory, need a capture of their own."""
        self._taken, self._replay = 0, None
        self._images, self._ids = torch.empty(0), torch.empty(0)
        self._names: list[str] = []

    @property
    def is_captured(self) -> bool:
        """Whether the next step will be replayed."""
        return self._replay is not None

    def step(self, done: int, images: torch.Tensor, ids: torch.Tensor, epoch: int) -> _Result:
        """Take the step after `done` others. The tensors of the result are overwritten by the next."""
        if self._watch.room < max(2 * len(self._names), _ROOM):
            self._watch.check()
        if self._replay is None and self._taken >= WARM_UP and not self._failed:
            self._record(images, ids, epoch)
        fits = images.shape == self._images.shape and images.dtype == self._images.dtype
        if self._replay is None or not fits:
            return self._launch(images, ids, epoch)
        self._images.copy_(images)
        self._ids.copy_(ids)
        result = self._replay()
        self._watch.record(done + 1, self._names)
        return result

    def _launch(self, images: torch.Tensor, ids: torch.Tensor, epoch: int) -> _Result:
        """Take the step as it is. In the last one before a capture, nothing may make the host wait.

        A capture would fail then, which costs the memory of a step: torch keeps what the capture has taken.
        """
        self._taken += 1
        take = partial(on_side_stream, partial(self._take, images, ids, epoch), images.device)
        if self._taken != WARM_UP or self._failed:
            return take()
        result, waits = with_waits(take)
        if waits:
            self._give_up(f"the host waits for the GPU, at {', '.join(waits[:3])}")
        return result

    def _give_up(self, reason: str) -> None:
        """Launch all further steps."""
        if self._required:
            raise RuntimeError(f"the step cannot be captured as a CUDA graph: {reason}")
        self._failed = True
        words = f"the step could not be captured as a CUDA graph, and is launched: {reason}"
        warnings.warn(f"{words}. If it fails later, pass --cuda-graph never", stacklevel=5)

    def _record(self, images: torch.Tensor, ids: torch.Tensor, epoch: int) -> None:
        self._images, self._ids = images.clone(), ids.clone()
        before = self._watch.count
        try:
            self._replay = captured(lambda: self._take(self._images, self._ids, epoch), images.device)
        except RuntimeError as error:
            cause = error.__context__ or error  # ending a capture that has failed is a second error
            if not isinstance(cause, Exception) or (self._required and out_of_memory_reason(cause)):  # such as Ctrl-C
                raise cause from None
            self._give_up(one_line(cause))
        finally:
            self._names = self._watch.drop(self._watch.count - before)


@contextmanager
def lent(backbone: nn.Module, forget_graph: Callable[[], None]) -> Iterator[nn.Module]:
    """Context in which an evaluator has the backbone; a RuntimeError if it leaves weights on another device.

    A captured step knows its weights by their place in memory: `forget_graph` is called if they came back to another.
    """
    before = _places(backbone)
    with untuned_convolutions():  # an evaluation has few batches of each shape
        yield backbone
    after = _places(backbone)
    for name, (device, _) in after.items():
        if name in before and before[name][0] != device:
            raise RuntimeError(f"an evaluator left {name} on {device}: bring the backbone back to {before[name][0]}")
    if after != before:
        forget_graph()


def _places(module: nn.Module) -> dict[str, tuple[torch.device, int]]:
    """Devices and addresses of a module's weights and buffers, by name."""
    tensors = [*module.named_parameters(), *module.named_buffers()]
    return {name: (tensor.device, tensor.data_ptr()) for name, tensor in tensors}


@lru_cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """Stream of warm-up and capture. They share it, since libraries and torch's memory are set up for each stream."""
    return torch.cuda.Stream(device)


def on_side_stream(body: _Body[_Result], device: torch.device) -> _Result:
    """Result of a step on the side stream. Autograd remembers the stream, and a capture must not wait for another."""
    stream, current = _side_stream(device), torch.cuda.current_stream(device)
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        result = body()
    current.wait_stream(stream)
    return result


def with_waits(body: _Body[_Result]) -> tuple[_Result, list[str]]:
    """Result of a call, and the lines of Python at which it makes the host wait for a GPU."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            result = body()
        finally:
            torch.cuda.set_sync_debug_mode(before)
    waits = [one for one in caught if "synchronizing CUDA operation" in str(one.message)]
    for one in caught:
        if one not in waits and "prototype feature" not in str(one.message):  # which torch says of the mode itself
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
    return result, [f"{Path(one.filename).name}:{one.lineno}" for one in waits]


def captured(body: _Body[_Result], device: torch.device) -> _Body[_Result]:
    """CUDA graph of a step, as a function that replays it.

    Other threads, such as one that copies images to pinned memory, may call the driver meanwhile.
    """
    graph, stream, current = torch.cuda.CUDAGraph(), _side_stream(device), torch.cuda.current_stream(device)
    # `torch.cuda.graph` synchronises the current device, and if the capture fails it does not restore the stream
    with (
        torch.cuda.device(device),
        torch.cuda.stream(current),
        _undone_if_it_fails(stream.device_index) as pool,
        torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"),
    ):
        result = body()

    def replay() -> _Result:
        graph.replay()
        return result

    return replay


@contextmanager
def _undone_if_it_fails(device: int) -> Iterator[Any]:
    """Context of a capture on a GPU, which gives the id of a memory pool for it.

    torch up to 2.11 takes a capture that has failed for one that goes on: random numbers and `empty_cache` are errors
    then, and memory that two streams have used is never freed.
    """
    pool, generator = torch.cuda.graph_pool_handle(), torch.cuda.default_generators[device]
    state = generator.clone_state()
    try:
        yield pool
    except BaseException:
        generator.graphsafe_set_state(state)
        with suppress(RuntimeError, AttributeError):  # newer versions of torch have ended it, or may end it elsewhere
            torch._C._cuda_endAllocateToPool(device, pool)
        raise
