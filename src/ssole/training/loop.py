"""The training loop: from a run folder and its images to trained weights, with stopping and resuming."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from ssole import distributed
from ssole.config import ConfigError, from_dict, to_dict
from ssole.data.folder import unread_images
from ssole.data.store import ImageStore
from ssole.distributed import Stopping
from ssole.errors import DataError, quoted
from ssole.models.custom import digests_of, identity_of
from ssole.models.load import backbone_metadata
from ssole.progress import data_size
from ssole.runtime import resolve_precision, torch_state
from ssole.training.checkpoint import (
    MOST_CHECKPOINTS,
    Progress,
    checkpoint_steps,
    load_checkpoint,
    require_space,
    save_backbone,
    snapshot,
    write_checkpoint,
)
from ssole.training.feed import Feed, Plan
from ssole.training.graph import lent
from ssole.training.guardian import Guardian
from ssole.training.initial import InitialWeights
from ssole.training.monitor import Evaluator, Monitor, check_evaluators
from ssole.training.needs import checkpoint_bytes
from ssole.training.pace import Pace
from ssole.training.run import Run, record_unreadable, rewind
from ssole.training.saving import Saver
from ssole.training.step import Learner
from ssole.training.stopping import Interrupted, Stop, stop_signal
from ssole.training.watch import NonFiniteLossError


@dataclass(frozen=True, kw_only=True)
class Given:
    """Python objects of a run that its settings cannot hold."""

    loss: nn.Module | None = None
    """Custom loss."""
    backbone: nn.Module | None = None
    """Custom backbone."""
    evaluators: Mapping[int, Evaluator] | None = None
    """{steps: f}: every so many steps, and at the end, f(backbone) gives figures for metrics.jsonl."""
    progress: bool = True
    """Whether to show what goes on."""

    def __post_init__(self) -> None:
        if self.evaluators is not None:
            check_evaluators(self.evaluators)

    def facts(self) -> dict[str, Any]:
        """Record of these objects for the run folder, with which a resumed run compares its own.

        It leaves out the buffers of the loss, which checkpoints hold.
        """
        steps, loss = sorted(self.evaluators or ()), self.loss
        found: dict[str, Any] = {"evaluators": steps} if steps else {}
        if loss is not None:
            saved = loss.state_dict().keys()
            found |= {"loss": identity_of(loss, but=saved), "loss_attributes": digests_of(loss, but=saved)}
        return found


def train(
    run: Run,
    store: ImageStore,
    plan: Plan,
    device: torch.device,
    given: Given,
    *,
    spent: float = 0.0,
    initial: InitialWeights | None = None,
    prepare: Callable[[], None] = lambda: None,
) -> Run:
    """Train a run to its end, from its newest checkpoint if it has one.

    All processes call its evaluators. `spent` are the seconds that preparing a new run has taken, and `initial` the
    weights that it starts from, in place of random ones. `prepare` is called by the first process after all checks but
    that of the checkpoint. Raises NonFiniteLossError, CollapseError, Interrupted, DataError or ConfigError.
    """
    distributed.collect(None)  # a barrier that waits however long it takes; later collectives have a timeout
    config, evaluators = from_dict(distributed.on_rank_0(lambda: to_dict(run.config))), given.evaluators or {}
    with torch_state(deterministic=config.deterministic):  # with many processes, it takes a first pass
        learner = Learner(
            config, device, loss=given.loss, backbone=given.backbone, labels=store.labels, images=plan.images
        )
    distributed.on_rank_0(lambda: _write_first_checkpoint(run, learner, initial, Progress(0, plan.images, spent)))
    distributed.on_rank_0(prepare)
    pace = Pace(run, plan, config, device=device)
    done = load_checkpoint(run, learner.modules, learner.optimizer, last_step=pace.total)
    distributed.on_rank_0(lambda: _check_and_rewind(run, learner, plan, done))
    learner.go_on_from(done.step)
    pace.start(done.step, done.seconds + done.evaluating)
    guardian = Guardian(run, learner, pace)
    feed = Feed(store, device)
    monitor = Monitor(run, _title(learner, plan, pace), total=pace.total, done=done, feed=feed, progress=given.progress)
    saver = Saver(run, learner, pace, monitor.flush)
    stopping = stop_signal(monitor.screen.show_stopping)
    # the saver within the handler of signals: it waits for the last checkpoint, which a second signal must not cut
    with torch_state(deterministic=config.deterministic), monitor, stopping as stop, saver:
        if note := unread_images(store.source.ignored):
            monitor.screen.print_line(note)
        loop = _Loop(run, store, learner, pace, guardian, feed, monitor, saver, evaluators, stop)
        loop.train(compiles=learner.wants_compiling(plan.total))
    learner.forget_graph()  # now, and not in the midst of another run: they share a stream and its workspace

    distributed.on_rank_0(lambda: save_backbone(run, learner.encoder.backbone, backbone_metadata(config)))
    return run


@dataclass(frozen=True)
class _Loop:
    """Loop over the steps of a run, with the parts that it uses."""

    run: Run
    store: ImageStore
    learner: Learner
    pace: Pace
    guardian: Guardian
    feed: Feed
    monitor: Monitor
    saver: Saver
    evaluators: Mapping[int, Evaluator]
    stop: Stop

    def train(self, *, compiles: bool) -> None:
        """Train from the learner's step to the end of the run."""
        with self._saved_when_stopped():
            if compiles:
                with self.monitor.preparing("compiling the encoder: up to half a minute"):
                    self.stop.interruptible_by_any(
                        lambda: self.learner.compile(stopping=lambda: bool(self.stop.requested))
                    )
            self._evaluate_missed()
        while self.learner.steps_done < self.pace.total:
            try:
                with self._saved_when_stopped():
                    self._take_steps()
            except NonFiniteLossError as error:
                self.saver.write_kept()
                done, intervention = self.guardian.recover(error, self.monitor.note)
                self.monitor.go_back(done, intervention)
                self.guardian.read_metrics()
                self.pace.start(self.learner.steps_done)

    def _take_steps(self) -> None:
        learner, pace, config = self.learner, self.pace, self.learner.config
        batches = self.feed.batches(pace.plan, learner.steps_done)
        while (batch := self.stop.interruptible(lambda: next(batches, None))) is not None:
            step, epoch, ids, images = batch
            if learner.labels is not None and (bad := self.store.unreadable):
                learner.labels[[i for i, _, _ in bad]] = -1  # the store gives other images in their place
            lr = self.guardian.rate * pace.learning_rate(step)
            terms, z_BVD = learner.step(images, ids, epoch=epoch, lr=lr, early=pace.is_early(step))
            last = pace.advance(step)
            self.monitor.advance(config.batch_size, pace.total)

            if last or _due(step, config.log_every):
                learner.watch.check()
                z_BD = distributed.gather(z_BVD[:, 0].detach())
                distributed.on_rank_0(partial(self._log, epoch, lr, terms, z_BD))

            due = [evaluator for every, evaluator in self.evaluators.items() if last or _due(step, every)]
            if due:
                learner.check_weights()  # or the evaluation would fail, where the guardian can go back
            for evaluator in due:
                self._evaluate(evaluator)

            if pace.is_regular(step + 1):
                self._save(must=last or _due(step, config.checkpoint_every))

            if last:
                return

    def _log(self, epoch: int, lr: float, terms: Mapping[str, torch.Tensor], z_BD: torch.Tensor) -> None:
        """Write a line of metrics and show it to the guardian. z_BD are the embeddings of one view of each image."""
        self.guardian.look(self.monitor.log(epoch, lr, terms, z_BD), self.monitor.note)

    def _evaluate(self, evaluator: Evaluator) -> None:
        with lent(self.learner.encoder.backbone, self.learner.forget_graph) as backbone:
            self.stop.interruptible_by_any(lambda: self.monitor.evaluate(evaluator, backbone))
        self.learner.encoder.train()  # an evaluator may have left the backbone in evaluation mode

    def _evaluate_missed(self) -> None:
        """Run the evaluations of the restored step that are missing because a signal interrupted them."""
        done = self.learner.steps_done

        def written() -> int:
            rows = (row for row in self.run.metrics if row["step"] == done)
            return sum(not {"loss", "guardian"} & row.keys() for row in rows)

        last = self.pace.is_last(done)
        due = [f for every, f in self.evaluators.items() if done > 0 and (last or _due(done - 1, every))]
        for evaluator in due[distributed.on_rank_0(written) :]:
            self._evaluate(evaluator)

    def _save(self, *, must: bool) -> None:
        """Record the images that could not be read, and save the learner's state: at once if it `must` be, or later."""
        found = [(i, name, why) for rows in distributed.collect(self.store.unreadable) for i, name, why in rows]
        distributed.on_rank_0(lambda: record_unreadable(self.run, found))
        times = self.monitor.seconds, self.monitor.evaluating
        self.saver.save(Progress(self.learner.steps_done, len(self.store), *times), must=must)
        self.store.take_unreadable(found)  # last: it raises an error if all processes together found too many

    @contextmanager
    def _saved_when_stopped(self) -> Iterator[None]:
        """Context that saves the steps done so far if a signal stops the work in it."""
        try:
            yield
        except DataError:
            if distributed.world_size() == 1:  # other processes may not come to tell theirs
                record_unreadable(self.run, self.store.unreadable)
            raise
        except Stopping as request:
            done = self.learner.steps_done
            if not done:
                raise Interrupted("stopped before the first step, and nothing was saved", request.number) from None
            self._save(must=True)
            distributed.maximum(0)  # a barrier: the first process may serve the store, which the others still need
            how = f"go on with: ssole pretrain --resume {quoted(self.run.path)}"
            raise Interrupted(f"stopped after step {done}; {how}", request.number) from None


def _write_first_checkpoint(run: Run, learner: Learner, initial: InitialWeights | None, start: Progress) -> None:
    """Write the checkpoint of step 0 of a run that has none yet. Failures go back to it until there is a later one."""
    require_space(run, learner.modules)
    if checkpoint_steps(run):
        return
    last = max((row["step"] for row in run.metrics), default=0)
    if last > 0 or not run.checkpoints.is_dir():
        raise ConfigError(
            f"the metrics of {run.path} reach step {last}, and {run.checkpoints} holds no checkpoint to go on from: "
            "copy the checkpoints back, or start anew in another folder (--out)"
        )
    if initial is not None:
        initial.load_into(learner, run)
    write_checkpoint(run, snapshot(learner.modules, learner.optimizer)(), start)


def _due(step: int, every: int | None) -> bool:
    return every is not None and (step + 1) % every == 0


def _check_and_rewind(run: Run, learner: Learner, plan: Plan, done: Progress) -> None:
    """Check that a run can continue from its checkpoint, then rewind the folder to that step."""
    if done.images != plan.images:
        raise DataError(
            f"the run was started on {done.images} images and the data now hold {plan.images}: resuming needs the same"
        )
    threads, now = run.environment.get("threads", 0), torch.get_num_threads()
    if learner.config.deterministic and done.step and threads != now:
        warnings.warn(
            f"the run began with {threads} threads and goes on with {now}, which may change last digits: "
            f"set OMP_NUM_THREADS={threads} to go on exactly",
            stacklevel=4,
        )
    _ = run.unreadable  # an error for a damaged file
    rewind(run, done.step)


def _title(learner: Learner, plan: Plan, pace: Pace) -> str:
    """Line that is shown at the start: images, steps, device, number format and disk."""
    config, device, world = learner.config, learner.device, distributed.world_size()
    steps = f"{pace.total} steps" if pace.budget is None else f"{config.budget}, about {pace.total} steps"
    where = str(device) if world == 1 else f"{world} processes ({device.type})"
    if resolve_precision(config.precision, device) is None:
        form = "float32"
    elif resolve_precision("auto", device) is None:
        form = "bfloat16, emulated here and slower than float32"
    else:
        form = "bfloat16"
    resumed = f", going on after step {learner.steps_done}" if learner.steps_done else ""
    disk = data_size(checkpoint_bytes(learner.modules, MOST_CHECKPOINTS))
    return (
        f"{plan.images:,} images, {steps} of {plan.batch_size} x {config.augment.views} views, on {where} in {form}"
        f"{resumed}; it needs {disk} of disk"
    )
