"""Plan and Feed: which images each step sees, and their batches on the training device."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from ssole import distributed
from ssole.config import ConfigError, PretrainConfig
from ssole.data.store import AHEAD, ImageStore
from ssole.errors import DataError
from ssole.memory import free_memory
from ssole.rng import epoch_order
from ssole.runtime import copy_to
from ssole.training.packing import pack, unpack
from ssole.views.geometry import ImageBatch


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Order of the images over a run: each epoch a permutation drawn from (seed, epoch), without incomplete batches."""

    images: int
    batch_size: int
    seed: int
    total: int
    """Steps of the whole run."""

    @property
    def steps_per_epoch(self) -> int:
        """Complete batches in an epoch."""
        return self.images // self.batch_size

    def epoch(self, step: int) -> int:
        """Epoch of a step; both count from 0."""
        return step // self.steps_per_epoch

    def ends_epoch(self, step: int) -> bool:
        """Whether a step is the last of its epoch."""
        return (step + 1) % self.steps_per_epoch == 0

    def batches(self, start: int) -> Iterator[tuple[int, int, torch.Tensor]]:
        """(step, epoch, image indices (B,) int64) from step `start` on."""
        epoch, order = -1, torch.empty(0, dtype=torch.int64)
        for step in range(start, self.total):
            if self.epoch(step) != epoch:
                epoch = self.epoch(step)
                order = epoch_order(self.seed, epoch, self.images)
            first = (step % self.steps_per_epoch) * self.batch_size
            yield step, epoch, order[first : first + self.batch_size]


def make_plan(config: PretrainConfig, images: int) -> Plan:
    """Plan of a run over so many images; a DataError if a batch has more, a ConfigError as :func:`check_shares`."""
    check_shares(config, distributed.world_size())
    if images < config.batch_size:
        hint = f"pass --batch-size {images} or less, or more images" if images > 1 else "give more images"
        raise DataError(f"a batch of {config.batch_size} images was asked for and the data hold {images}: {hint}")
    total = config.steps if config.steps is not None else config.epochs * (images // config.batch_size)
    return Plan(images=images, batch_size=config.batch_size, seed=config.seed, total=total)


def check_shares(config: PretrainConfig, world: int) -> None:
    """Raise a ConfigError unless a batch can be divided among processes and into parts of two images or more."""
    parts = config.accumulate
    if world * parts > 1 and (config.batch_size % (world * parts) or config.batch_size < 2 * world * parts):
        counts = {"processes": world, "parts (accumulate)": parts}
        among = " and ".join(f"{count} {what}" for what, count in counts.items() if count > 1)
        raise ConfigError(
            f"a batch of {config.batch_size} images cannot be divided equally among {among}, with two images or more "
            f"for each: choose a --batch-size that is a multiple of {world * parts}, at least {2 * world * parts}"
        )


class Feed:
    """Batches of decoded images in the order of a plan; later batches are prepared while earlier ones train."""

    def __init__(self, store: ImageStore, device: torch.device) -> None:
        self._store, self._device = store, device
        self._loop_waited = 0.0
        self._images = None if store.images is None else _resident(store.images, device)
        self._upload = _Upload(device) if device.type == "cuda" and self._images is None else None

    @property
    def waited(self) -> float:
        """Seconds that training has waited for images: those of the loop on a CPU, those of the GPU itself on a GPU.

        0 for images in a GPU's memory. The loop runs ahead of a GPU, so that its own waits delay nothing there.
        """
        if self._upload is not None:
            return self._upload.waits.seconds()
        return self._loop_waited if self._images is None else 0.0

    def batches(self, plan: Plan, start: int) -> Iterator[tuple[int, int, torch.Tensor, ImageBatch]]:
        """(step, epoch, ids (B,), images) from step `start` on; ids and images are on the device.

        Of many processes, each has a share. Shares are equal, and in the order of rank they are the whole batch.
        """
        ahead: deque[tuple[int, int, torch.Tensor, Callable[[], ImageBatch]]] = deque()
        for step, epoch, batch in plan.batches(start):
            ids = batch.chunk(distributed.world_size())[distributed.rank()]
            device_ids = copy_to(ids, self._device)
            ahead.append((step, epoch, device_ids, self._begin(ids, device_ids)))
            if len(ahead) > AHEAD:
                yield self._finish(*ahead.popleft())
        while ahead:
            yield self._finish(*ahead.popleft())

    def hint(self) -> str | None:
        """Advice in one line on how to wait less for images; None if the waiting ends by itself."""
        return self._store.hint()

    def _begin(self, ids: torch.Tensor, device_ids: torch.Tensor) -> Callable[[], ImageBatch]:
        """Start to prepare a batch; the returned function waits for it. `device_ids` are the ids on the device."""
        if (resident := self._images) is not None:
            return lambda: resident.index_select(0, device_ids)
        self._store.prefetch(ids)
        if self._upload is not None:
            return self._upload.begin(lambda: self._store.get(ids))
        return lambda: self._store.get(ids)

    def _finish(
        self, step: int, epoch: int, ids: torch.Tensor, ready: Callable[[], ImageBatch]
    ) -> tuple[int, int, torch.Tensor, ImageBatch]:
        begin = time.perf_counter()
        images = ready()
        self._loop_waited += time.perf_counter() - begin
        return step, epoch, ids, images


def _resident(images: torch.Tensor, device: torch.device) -> torch.Tensor | None:
    """All images in a GPU's memory; None on a CPU, or if they would fill a quarter of the free memory or more."""
    if device.type == "cpu" or images.nbytes >= free_memory(device) // 4:
        return None
    return images.to(device)


class _Upload:
    """Copier of batches to a GPU in its own thread and stream, so that neither the loop nor the GPU waits.

    It copies from pinned memory: only such copies run beside the GPU's other work.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.waits = StreamWaits()
        self._stream = torch.cuda.Stream(device)
        # with this device as its current one, or the thread would set up GPU 0 as well
        self._thread = ThreadPoolExecutor(
            1, thread_name_prefix="ssole-upload", initializer=torch.cuda.set_device, initargs=(self._stream.device,)
        )

    def begin(self, load: Callable[[], ImageBatch]) -> Callable[[], ImageBatch]:
        """Start to load and copy a batch; the returned function makes thread and current stream wait for the copy."""
        future = self._thread.submit(self._copy, load)

        def ready() -> ImageBatch:
            stream = torch.cuda.current_stream(self._device)
            with self.waits.measured(stream):
                flat, images, copied = future.result()
                stream.wait_event(copied)
            flat.record_stream(stream)  # keeps its memory from being reused before this stream is done with it
            return images

        return ready

    def _copy(self, load: Callable[[], ImageBatch]) -> tuple[torch.Tensor, ImageBatch, torch.cuda.Event]:
        batch = load()
        parts = [batch] if isinstance(batch, torch.Tensor) else batch
        pinned = pack(parts, pin_memory=True)
        with torch.cuda.stream(self._stream):
            flat = pinned.to(self._device, non_blocking=True)
            copied = self._stream.record_event()
        images = unpack(flat, parts)
        return flat, images[0] if isinstance(batch, torch.Tensor) else images, copied


class StreamWaits:
    """Time that a GPU's stream stands still for something; neither the loop nor the GPU waits for the figure.

    An event before and one after the wait say when the GPU got there. While it is busy with earlier work both come at
    the same time, however long the loop waits in between.
    """

    def __init__(self) -> None:
        self._seconds, self._open = 0.0, deque[tuple[torch.cuda.Event, torch.cuda.Event]]()

    @contextmanager
    def measured(self, stream: torch.cuda.Stream) -> Iterator[None]:
        """Context around a wait of the current thread and of `stream`."""
        reached, served = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        reached.record(stream)
        yield
        served.record(stream)
        self._open.append((reached, served))

    def seconds(self) -> float:
        """Sum over the waits that the GPU is through with."""
        while self._open and self._open[0][1].query():
            reached, served = self._open.popleft()
            self._seconds += reached.elapsed_time(served) / 1000
        return self._seconds
