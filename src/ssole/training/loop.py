"""The training loop: views -> embeddings -> loss -> step, with everything of a run written to its folder.

Shape suffixes: B images, V views, D embedding dimensions.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping

import torch
from torch import nn

from ssole.config import ConfigError, PretrainConfig
from ssole.data.store import ImageStore
from ssole.errors import DataError
from ssole.losses import SSOLELoss
from ssole.losses.ssole import SSOLETerms
from ssole.models.backbone import Encoder, create_encoder, whiten_stem
from ssole.models.compile import compile_encoder, wants_compiling
from ssole.models.cpu import speed_up_convolutions
from ssole.models.load import backbone_metadata
from ssole.runtime import keep_freed_memory, resolve_device, resolve_precision, seed_layers, torch_state
from ssole.training.checkpoint import Progress, load_checkpoint, save_backbone, save_checkpoint
from ssole.training.feed import Feed
from ssole.training.health import LossWatch, NonFiniteLossError, require_finite_weights
from ssole.training.interrupt import Interrupted, stop_signal
from ssole.training.monitor import Evaluator, Monitor
from ssole.training.optim import create_optimizer, set_learning_rate
from ssole.training.plan import Plan, make_plan
from ssole.training.run import Run, note_unreadable, rewind
from ssole.training.schedule import learning_rate
from ssole.views import make_views


def train(
    run: Run,
    store: ImageStore,
    *,
    evaluators: Mapping[int, Evaluator] | None = None,
    progress: bool = True,
) -> Run:
    """Train the run in its folder to the end, from its newest checkpoint if there is one.

    Args:
        run: from :func:`ssole.training.run.create_run`, or an interrupted one.
        store: the images.
        evaluators: {steps: f}; every so many steps, and at the end, f(backbone) gives figures for metrics.jsonl.
        progress: show a progress bar (on a terminal) or a line now and then (elsewhere).

    Raises:
        NonFiniteLossError, Interrupted, DataError, ConfigError.
    """
    config, evaluators = run.config, _checked(evaluators or {})
    plan = make_plan(config, len(store))
    device = resolve_device(config.device)
    encoder = encoder_to_train(config, device)
    if device.type == "cpu":
        keep_freed_memory()
    optimizer = create_optimizer(encoder, config.optim)
    done = _go_on(run, encoder, optimizer, plan)
    loss_fn = create_loss(config, device)
    feed, watch = Feed(store, device), LossWatch(device)
    if config.model.stem_init == "whitening" and not done.step:
        _whiten_stem(encoder, feed, plan, config)

    with (
        torch_state(deterministic=config.deterministic),
        Monitor(
            run, _title(config, plan, device, done), total=plan.total, done=done, feed=feed, progress=progress
        ) as monitor,
        stop_signal(monitor.tell_stopping) as stop,
    ):
        if wants_compiling(config, encoder, device, plan.total):
            with monitor.preparing("compiling the encoder: up to half a minute"):
                compile_to_train(encoder, config, device, stopping=lambda: bool(stop.requested))
        for step, epoch, ids, images in feed.batches(plan, done.step):
            lr = _step_learning_rate(config, plan, step)
            set_learning_rate(optimizer, lr)
            seed_layers(config.seed, step)
            views = make_views(images, ids, recipe=config.augment, seed=config.seed, epoch=epoch)
            z_BVD = embed_views(encoder, views, config)
            terms = _loss_terms(loss_fn, z_BVD, step)
            watch.add(step + 1, terms.total)
            _descend(terms.total, encoder, optimizer, config.optim.clip_grad_norm)

            last, stopping = step + 1 == plan.total, stop.requested
            monitor.advance(len(ids))
            if last or _due(step, config.log_every):
                watch.check()
                monitor.log(epoch, lr, terms, z_BVD)
            for every, evaluator in evaluators.items():
                if last or _due(step, every):
                    monitor.evaluate(evaluator, encoder.backbone)
                    encoder.train()  # whatever mode the evaluator left
            if last or _due(step, config.checkpoint_every) or plan.ends_epoch(step) or stopping:
                watch.check()
                require_finite_weights(encoder, step + 1)
                note_unreadable(run, store.unreadable)
                save_checkpoint(run, encoder, optimizer, Progress(step + 1, len(store), monitor.seconds))
            if stopping and not last:
                raise Interrupted(run, step + 1, stopping)
    save_backbone(run, encoder.backbone, backbone_metadata(config))
    return run


def _checked(evaluators: Mapping[int, Evaluator]) -> Mapping[int, Evaluator]:
    if any(every < 1 for every in evaluators):
        raise ConfigError(f"evaluators run every so many steps, at least 1; got {sorted(evaluators)}")
    return evaluators


def encoder_to_train(config: PretrainConfig, device: torch.device) -> Encoder:
    """The encoder of a config at its initial weights, on a device and in the form that trains fastest there."""
    encoder = create_encoder(config.model, config.augment.image_size, seed=config.seed, channels=config.channels or 3)
    encoder.to(device=device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    if device.type == "cpu":
        speed_up_convolutions(encoder)
    return encoder


def compile_to_train(
    encoder: Encoder, config: PretrainConfig, device: torch.device, *, stopping: Callable[[], bool] = lambda: False
) -> bool:
    """Compile the encoder for the views of a config; whether it is compiled. See :func:`compile_encoder`."""
    views = [
        torch.zeros(config.batch_size, crop.count, config.channels or 3, crop.size, crop.size, device=device)
        for crop in config.augment.crops
    ]
    required = config.compile == "always"
    return compile_encoder(encoder, lambda: embed_views(encoder, views, config), required=required, stopping=stopping)


def _whiten_stem(encoder: Encoder, feed: Feed, plan: Plan, config: PretrainConfig) -> None:
    """By the views that the first step will see."""
    _, epoch, ids, images = next(feed.batches(plan, 0))
    views = make_views(images, ids, recipe=config.augment, seed=config.seed, epoch=epoch)
    whiten_stem(encoder.backbone, views[0].flatten(0, 1))


def _go_on(run: Run, encoder: Encoder, optimizer: torch.optim.Optimizer, plan: Plan) -> Progress:
    """Bring encoder, optimizer and run folder to the newest checkpoint, or to the start."""
    done = load_checkpoint(run, encoder, optimizer) or Progress(step=0, images=plan.images, seconds=0.0)
    if done.images != plan.images:
        raise DataError(
            f"the run was started on {done.images} images and the data now hold {plan.images}: resuming needs the same"
        )
    threads, now = run.environment["threads"], torch.get_num_threads()
    if run.config.deterministic and done.step and threads != now:
        warnings.warn(
            f"the run began with {threads} threads and goes on with {now}, which may change last digits: "
            f"set OMP_NUM_THREADS={threads} to go on exactly",
            stacklevel=3,
        )
    rewind(run, done.step)
    return done


def _title(config: PretrainConfig, plan: Plan, device: torch.device, done: Progress) -> str:
    number = str(resolve_precision(config.precision, device) or torch.float32).removeprefix("torch.")
    title = f"{plan.images:,} images, {plan.total} steps of {plan.batch_size} x {config.augment.views} views"
    return f"{title}, on {device} in {number}" + (f", going on after step {done.step}" if done.step else "")


def embed_views(encoder: Encoder, views: list[torch.Tensor], config: PretrainConfig) -> torch.Tensor:
    """Embeddings (B, V, D) of crop groups (B, V_g, C, S_g, S_g); groups of different size stack along V."""
    device = views[0].device
    dtype = resolve_precision(config.precision, device)
    with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
        groups = [
            encoder(x.flatten(0, 1).contiguous(memory_format=torch.channels_last)).unflatten(0, x.shape[:2])
            for x in views
        ]
    return torch.cat(groups, dim=1)


def create_loss(config: PretrainConfig, device: torch.device) -> SSOLELoss:
    """The loss of a config."""
    loss = config.loss
    return SSOLELoss(
        loss.high_rank_weight,
        loss.gamma,
        form=loss.form,
        low_rank_features=loss.low_rank_features,
        detach_mean=loss.detach_mean,
        coupled=loss.coupled,
        gradient=loss.gradient,
        check_input=device.type == "cpu",  # looking at values makes an accelerator wait; the watch sees them later
    )


def _loss_terms(loss_fn: SSOLELoss, z_BVD: torch.Tensor, step: int) -> SSOLETerms:
    """The loss; what it says of NaN, infinity and zero vectors becomes an error that names the step."""
    try:
        return loss_fn.terms(z_BVD)
    except (ValueError, torch.linalg.LinAlgError) as error:  # type: ignore[attr-defined]
        raise NonFiniteLossError(step + 1, str(error)) from error


def _descend(
    loss: torch.Tensor, encoder: Encoder, optimizer: torch.optim.Optimizer, largest_norm: float | None
) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    if largest_norm is not None:
        nn.utils.clip_grad_norm_(encoder.parameters(), largest_norm)
    optimizer.step()


def _step_learning_rate(config: PretrainConfig, plan: Plan, step: int) -> float:
    optim = config.optim
    return learning_rate(step, total=plan.total, warmup=optim.warmup_steps, lr=optim.lr, final_lr=optim.final_lr)


def _due(step: int, every: int | None) -> bool:
    return every is not None and (step + 1) % every == 0
