"""The training loop: views -> embeddings -> loss -> step, with everything of a run written to its folder.

Shape suffixes: B images, V views, D embedding dimensions, S side of a crop.
"""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

import torch
from torch import nn

from ssole.config import ConfigError, PretrainConfig
from ssole.data.loader import ImageStore
from ssole.errors import DataError
from ssole.losses import SSOLELoss
from ssole.losses.ssole import SSOLETerms
from ssole.models.encoder import Encoder, create_encoder
from ssole.models.load import backbone_metadata
from ssole.precision import resolve_precision
from ssole.rng import epoch_order
from ssole.training.checkpoint import Progress, Run, load_checkpoint, rewind_metrics, save_backbone, save_checkpoint
from ssole.training.monitor import Evaluator, Monitor
from ssole.training.optim import create_optimizer, set_learning_rate
from ssole.training.schedule import learning_rate
from ssole.views import make_views

Images = torch.Tensor | list[torch.Tensor]


class NonFiniteLossError(FloatingPointError):
    """The loss became NaN or infinite; the message names the step. Nothing after the last checkpoint is kept."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM arrived; a checkpoint was written first."""

    def __init__(self, run: Run, step: int, signal_number: int) -> None:
        super().__init__(f"stopped after step {step}; go on with: ssole pretrain --resume {run.path}")
        self.signal_number = signal_number


@dataclass(frozen=True)
class Plan:
    """Which images each step sees: epochs are permutations drawn from (seed, epoch), the last incomplete batch is dropped."""

    images: int
    batch_size: int
    seed: int
    total: int

    @property
    def steps_per_epoch(self) -> int:
        return self.images // self.batch_size

    def epoch(self, step: int) -> int:
        return step // self.steps_per_epoch

    def order(self, epoch: int) -> torch.Tensor:
        return epoch_order(self.seed, epoch, self.images)

    def ends_epoch(self, step: int) -> bool:
        return (step + 1) % self.steps_per_epoch == 0

    def batches(self, start: int) -> Iterator[tuple[int, int, torch.Tensor]]:
        """(step, epoch, image indices (B,)) from step `start` on."""
        epoch, order = -1, torch.empty(0, dtype=torch.int64)
        for step in range(start, self.total):
            if self.epoch(step) != epoch:
                epoch = self.epoch(step)
                order = self.order(epoch)
            first = (step % self.steps_per_epoch) * self.batch_size
            yield step, epoch, order[first : first + self.batch_size]


def make_plan(config: PretrainConfig, images: int) -> Plan:
    """The plan of a run over so many images.

    Raises:
        DataError: fewer images than a batch.
    """
    if images < config.batch_size:
        raise DataError(
            f"a batch of {config.batch_size} images was asked for and the data hold {images}: "
            f"pass --batch-size {max(2, images)} or less, or more images"
        )
    total = config.steps if config.steps is not None else config.epochs * (images // config.batch_size)
    return Plan(images=images, batch_size=config.batch_size, seed=config.seed, total=total)


def train(
    run: Run,
    store: ImageStore,
    *,
    evaluators: Mapping[int, Evaluator] | None = None,
    progress: bool = True,
) -> Run:
    """Train the run in its folder to the end, from its newest checkpoint if there is one.

    Args:
        run: from :func:`ssole.training.checkpoint.create_run`, or an interrupted one.
        store: the images.
        evaluators: {steps: f}; every so many steps, and at the end, f(backbone) gives figures for metrics.jsonl.
        progress: show a progress bar (on a terminal) or a line now and then (elsewhere).

    Raises:
        NonFiniteLossError, Interrupted, DataError, ConfigError.
    """
    config = run.config
    plan = make_plan(config, len(store))
    device = resolve_device(config.device)
    encoder = create_encoder(config.model, config.augment.image_size, seed=config.seed)
    encoder = encoder.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = create_optimizer(encoder, config.optim)
    done = load_checkpoint(run, encoder, optimizer) or Progress(step=0, images=len(store), seconds=0.0)
    if done.images != len(store):
        raise DataError(
            f"the run was started on {done.images} images and the data now hold {len(store)}: resuming needs the same"
        )
    rewind_metrics(run, done.step)
    loss_fn = _create_loss(config, device)
    feed = _Feed(store, device)

    encoder.train()
    with (
        _determinism(config.deterministic),
        _stop_signal() as stop,
        Monitor(run, plan.total, done, progress) as monitor,
    ):
        for step, epoch, ids, images in feed.batches(plan, done.step):
            lr = _step_learning_rate(config, plan, step)
            set_learning_rate(optimizer, lr)
            views = make_views(images, ids, recipe=config.augment, seed=config.seed, epoch=epoch)
            z_BVD = embed_views(encoder, views, config)
            terms = _checked_terms(loss_fn, z_BVD, step)
            optimizer.zero_grad(set_to_none=True)
            terms.total.backward()  # type: ignore[no-untyped-call]
            if config.optim.clip_grad_norm is not None:
                nn.utils.clip_grad_norm_(encoder.parameters(), config.optim.clip_grad_norm)
            optimizer.step()

            last = step + 1 == plan.total
            monitor.advance(len(ids))
            if last or (step + 1) % config.log_every == 0:
                monitor.log(step + 1, epoch, lr, terms, z_BVD)
            for every, evaluator in (evaluators or {}).items():
                if last or (step + 1) % every == 0:
                    monitor.evaluate(step + 1, evaluator, encoder.backbone)
            due = config.checkpoint_every is not None and (step + 1) % config.checkpoint_every == 0
            if last or due or stop.requested or plan.ends_epoch(step):
                _check_finite(terms, step)
                save_checkpoint(run, encoder, optimizer, Progress(step + 1, len(store), monitor.seconds))
            if stop.requested and not last:
                raise Interrupted(run, step + 1, stop.requested)
    if store.unreadable:
        store.save_unreadable(run.path / "unreadable.jsonl")
    save_backbone(run, encoder.backbone, backbone_metadata(config))
    return run


def embed_views(encoder: Encoder, views: list[torch.Tensor], config: PretrainConfig) -> torch.Tensor:
    """Embeddings (B, V, D) of crop groups (B, V_g, 3, S_g, S_g); groups of different size stack along V."""
    device = views[0].device
    dtype = resolve_precision(config.precision, device)
    with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
        groups = [
            encoder(x.flatten(0, 1).contiguous(memory_format=torch.channels_last)).unflatten(0, x.shape[:2])
            for x in views
        ]
    return torch.cat(groups, dim=1)


def resolve_device(name: str) -> torch.device:
    """`auto`, `cpu`, `cuda` or `cuda:N` to a device.

    Raises:
        ConfigError: no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device must be auto, cpu, cuda or cuda:N, got {name!r}") from None
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device must be auto, cpu, cuda or cuda:N, got {name!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device {name!r} was asked for and torch sees {torch.cuda.device_count()} CUDA devices")
    return device


class _Feed:
    """Batches of decoded images on the training device, in the order of a plan."""

    def __init__(self, store: ImageStore, device: torch.device) -> None:
        self.store, self.device = store, device
        # small sets live in the accelerator's memory, so that a step needs no transfer
        self.images = store.images.to(device) if store.images is not None and device.type != "cpu" else None

    def batches(self, plan: Plan, start: int) -> Iterator[tuple[int, int, torch.Tensor, Images]]:
        """(step, epoch, ids (B,), images) from step `start` on; the next batch is decoded while the current one trains."""
        upcoming = plan.batches(start)
        current = next(upcoming, None)
        while current is not None:
            following = next(upcoming, None)
            if following is not None:
                self.store.prefetch(following[2])
            yield *current, self._get(current[2])
            current = following

    def _get(self, ids: torch.Tensor) -> Images:
        if self.images is not None:
            return self.images[ids.to(self.device)]
        batch = self.store.get(ids)
        if isinstance(batch, torch.Tensor):
            return batch.to(self.device)
        return [image.to(self.device) for image in batch]


def _create_loss(config: PretrainConfig, device: torch.device) -> SSOLELoss:
    loss = config.loss
    return SSOLELoss(
        loss.high_rank_weight,
        loss.gamma,
        form=loss.form,
        low_rank_features=loss.low_rank_features,
        detach_mean=loss.detach_mean,
        coupled=loss.coupled,
        gradient=loss.gradient,
        # looking at the values would make an accelerator wait; there a bad step shows in the loss, before anything is saved
        check_input=device.type == "cpu",
    )


def _step_learning_rate(config: PretrainConfig, plan: Plan, step: int) -> float:
    optim = config.optim
    return learning_rate(step, total=plan.total, warmup=optim.warmup_steps, lr=optim.lr, final_lr=optim.final_lr)


def _checked_terms(loss_fn: SSOLELoss, z_BVD: torch.Tensor, step: int) -> SSOLETerms:
    try:
        terms: SSOLETerms = loss_fn.terms(z_BVD)
    except ValueError as error:  # non-finite or zero embeddings, named by the loss
        raise NonFiniteLossError(f"step {step + 1}: {error}. {_ADVICE}") from error
    if z_BVD.device.type == "cpu":
        _check_finite(terms, step)
    return terms


_ADVICE = "Training has left the region where it can learn: lower optim.lr, add optim.warmup_steps or set optim.clip_grad_norm."


def _check_finite(terms: SSOLETerms, step: int) -> None:
    loss = float(terms.total.detach())
    if not math.isfinite(loss):
        raise NonFiniteLossError(f"step {step + 1}: the loss is {loss}. {_ADVICE}")


@contextmanager
def _determinism(wanted: bool) -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(wanted or before[0])
    torch.utils.deterministic.fill_uninitialized_memory = False  # a debugging aid that writes every new tensor twice
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.utils.deterministic.fill_uninitialized_memory = before[1]


@dataclass
class _Stop:
    requested: int = 0
    """The signal that asked for a stop, or 0."""


@contextmanager
def _stop_signal() -> Iterator[_Stop]:
    """Turn the first Ctrl-C or SIGTERM into a request that the loop answers after its step; a second one acts at once."""
    stop = _Stop()
    if threading.current_thread() is not threading.main_thread():  # Python delivers signals to the main thread only
        yield stop
        return

    def request(number: int, frame: FrameType | None) -> None:
        stop.requested = number
        signal.signal(signal.SIGINT, before[signal.SIGINT])
        signal.signal(signal.SIGTERM, before[signal.SIGTERM])

    before = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
