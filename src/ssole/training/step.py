"""Learner: the encoder, loss and optimizer of a run, and its training step.

The training loop, the doctor's trial and the benchmarks all take this step, so that they measure what runs do.

Shape suffixes: B images, V views, C channels, S side of a crop, D embedding dimensions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ssole import distributed
from ssole.config import ConfigError, CustomConfig, PretrainConfig, ViewRecipe
from ssole.data.labels import number_ids
from ssole.errors import DataError, listed
from ssole.losses import LOSSES
from ssole.losses.base import EmbeddingError, EmbeddingLoss, copy_of_loss, is_plain, named_terms
from ssole.models.backbone import Encoder, feature_dim, seeded_weights, whiten_stem
from ssole.models.compile import compile_encoder, wants_compiling
from ssole.models.weights_file import not_finite
from ssole.progress import data_size
from ssole.runtime import copy_to, keep_freed_memory
from ssole.training.embedder import Embedder
from ssole.training.graph import StepGraph, wants_graph
from ssole.training.optim import create_optimizer, set_learning_rate, use_tensor_rates
from ssole.training.watch import LossWatch, NonFiniteLossError, infinite_buffers
from ssole.views import make_views
from ssole.views.device import MAX_TABLE_BYTES, EpochRows
from ssole.views.geometry import ImageBatch


class Batch(NamedTuple):
    """Arguments of a training step."""

    images: ImageBatch
    ids: torch.Tensor
    epoch: int
    lr: float
    early: bool = False


class StepResult(NamedTuple):
    """Loss terms and embeddings of one training step, both from before the weights were updated."""

    terms: dict[str, torch.Tensor]
    """Scalar tensors by name; the first, `loss`, is the total."""
    z_BVD: torch.Tensor
    """Embeddings."""


class Learner:
    """Encoder, loss and optimizer of a run, and the training step that they take together.

        learner = Learner(config, device)
        terms, z_BVD = learner.step(images, ids, epoch=0, lr=0.1)

    Args:
        config: the settings of the run; initial weights are a function of `config.seed`.
        device: where encoder and loss are placed.
        loss: a module of your own, of which a copy is used, in place of the one that `config.loss` names. On an
            accelerator, an EmbeddingLoss gets `check_input = False`.
        backbone: a module of your own, of which a copy is trained, if the config records one.
        labels: int64 (N,) of all images, -1 where unknown; only losses with `needs_labels` see them.
        images: number of images in the data set, by which an accelerator draws the views of an epoch at once.

    Attributes:
        embedder: the encoder over all processes and parts of a batch.
        encoder: in training mode, in the form that trains fastest on the device; its weights and their names are those
            of :func:`ssole.models.backbone.create_encoder`.
        loss: the module that maps embeddings (B, V, D) to a scalar or to named terms (`ssole.losses.base.named_terms`).
        modules: encoder and loss by name: all that has weights to be trained and saved.
        optimizer: over all parameters of these modules.
        steps_done: number of steps taken so far.
        labels: of all images, if the loss needs them, else None.
        watch: where losses and norms of gradients are checked.
        batch: arguments of the newest step.
    """

    def __init__(
        self,
        config: PretrainConfig,
        device: torch.device,
        *,
        loss: nn.Module | None = None,
        backbone: nn.Module | None = None,
        labels: NDArray[np.int64] | None = None,
        images: int | None = None,
    ) -> None:
        if device.type == "cpu":
            keep_freed_memory()
        if loss is None and labels is not None:
            labels = number_ids(labels)
        self.config, self.device = config, device
        self.embedder = Embedder(config, device, backbone)
        self.encoder = self.embedder.encoder
        own_loss = create_loss(config, self.encoder, labels) if loss is None else copy_of_loss(loss)
        self.loss = own_loss.to(device).train()
        if device.type != "cpu" and isinstance(self.loss, EmbeddingLoss):
            self.loss.check_input = False  # looking at values makes an accelerator wait; the watch finds them later
        needs_labels = bool(getattr(self.loss, "needs_labels", False))
        if needs_labels and labels is None:
            raise DataError(f"the loss {type(self.loss).__name__} needs labels, and the images have none")
        self.labels = torch.tensor(labels, device=device) if needs_labels else None
        self.modules = nn.ModuleDict({"encoder": self.encoder, "loss": self.loss})
        self.optimizer = create_optimizer(self.modules, config.optim)
        self.steps_done, self.is_compiled = 0, False
        self.watch = LossWatch(device)
        self._infinite = infinite_buffers({"encoder.backbone.module": backbone, "loss": loss})
        self._images = images
        self._graph: StepGraph[StepResult] | None = None
        own_code = backbone is not None or type(own_loss) not in LOSSES.values()
        if wants_graph(config, device, self.optimizer, own_code=own_code):
            use_tensor_rates(self.optimizer, device)
            self._graph = StepGraph(self._take, self.watch, required=config.cuda_graph == "always")
        self._recipes = {True: config.augment.parts[0], False: config.augment}  # by whether a step is early
        self._use_recipe(config.augment)
        self.batch: Batch | None = None

    def _use_recipe(self, recipe: ViewRecipe) -> None:
        """Make the views of the following steps by this recipe."""
        self._recipe = recipe
        self._rows = EpochRows(recipe, self._images, self.config.input_channels, self.config.seed)
        self.forget_graph()

    def go_on_from(self, step: int) -> None:
        """Go on after so many steps, once other weights and optimizer state were put in place."""
        self.steps_done = step
        self.forget_graph()  # the optimizer's state may be elsewhere in memory now

    def step(self, images: ImageBatch, ids: torch.Tensor, *, epoch: int, lr: float, early: bool = False) -> StepResult:
        """Take one training step on a batch of images.

        Args:
            images: uint8 or uint16 (B, C, H, W), or B tensors (C, h, w) of different sizes.
            ids: int64 (B,), indices of the images in their data set; a GPU waits unless they are on it.
            epoch: number of the epoch, from 0; the views are a function of (seed, epoch, id).
            lr: learning rate of this step.
            early: whether the views are those of the first part of a run (`config.augment.early`), if it has such.

        Raises:
            NonFiniteLossError: the loss or its gradient is NaN or infinite, and the weights are as they were. On an
                accelerator, `watch.check` raises it later.
        """
        self.batch = Batch(images, ids, epoch, lr, early)
        if (recipe := self._recipes[early]) != self._recipe:
            self._use_recipe(recipe)
        set_learning_rate(self.optimizer, lr)
        self.embedder.seed(self.steps_done)
        if self._graph is not None and self._may_replay(images, epoch):
            assert isinstance(images, torch.Tensor)
            result = self._graph.step(self.steps_done, images, ids, epoch)
        else:
            result = self._take(images, ids, epoch)
        self.steps_done += 1
        return result

    def _may_replay(self, images: ImageBatch, epoch: int) -> bool:
        """Whether this step may be captured or replayed: not the first, because it may whiten the stem.

        Nor may one whose values are checked at once, or whose views have no rows.
        """
        if self.steps_done == 0 or self.watch.looks_at_once(self.steps_done + 1):
            return False
        ready = self._rows.ready(images, epoch)
        if not ready and self.config.cuda_graph == "always":
            raise ConfigError(
                "cuda_graph = always needs images of one size, and few enough that the views of an epoch are drawn at "
                f"once (a table of at most {data_size(MAX_TABLE_BYTES)}): use auto"
            )
        return ready

    def _take(self, images: ImageBatch, ids: torch.Tensor, epoch: int) -> StepResult:
        rows = self._rows.lookup(images, ids, epoch)
        views = make_views(images, ids, recipe=self._recipe, seed=self.config.seed, epoch=epoch, rows=rows)
        if self.steps_done == 0 and self.config.init is None and self.config.model.stem_init == "whitening":
            whiten_stem(self.encoder.backbone, views[0].flatten(0, 1))
        labels = () if self.labels is None else (self.labels.index_select(0, copy_to(ids, self.device)),)
        return self._learn(views, *labels)

    def step_on_views(self, views: list[torch.Tensor], *labels: torch.Tensor, lr: float) -> StepResult:
        """Take one training step on views that are made already, one tensor (B, V_g, C, S_g, S_g) a crop group."""
        set_learning_rate(self.optimizer, lr)
        self.embedder.seed(self.steps_done)
        result = self._learn(views, *labels)
        self.steps_done += 1
        return result

    def _learn(self, views: list[torch.Tensor], *labels: torch.Tensor) -> StepResult:
        z_BVD, name = self.embedder.embed(views, self.steps_done), "the loss"
        try:
            terms = self.loss_terms(z_BVD, *labels)
        except NonFiniteLossError as error:
            if distributed.world_size() == 1:
                raise
            terms, name = {"loss": z_BVD.sum() * torch.nan}, f"the loss ({error.what})"  # NaN tells the others
        # A custom loss may differ between processes, and be finite on some: all of them must see the same.
        mean_terms = terms | {"loss": distributed.mean(terms["loss"])}
        self.watch.add(self.steps_done + 1, mean_terms["loss"], name)
        self.descend(terms["loss"])
        return StepResult({name: value.detach() for name, value in mean_terms.items()}, z_BVD.detach())

    def loss_terms(self, z_BVD: torch.Tensor, *labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Named loss terms of embeddings, the total first; an error that names the step if these are not finite."""
        try:
            if is_plain(self.loss):
                return named_terms(self.loss, z_BVD, *labels)
            of_all = [distributed.gather(x) for x in (z_BVD, *labels)]  # code from elsewhere knows one process
            with distributed.alone():  # an EmbeddingLoss within it must not gather them once more
                return named_terms(self.loss, *of_all)
        except (EmbeddingError, torch.linalg.LinAlgError) as error:  # type: ignore[attr-defined]
            if distributed.world_size() == 1:
                self.watch.check()  # on an accelerator, an earlier step may have failed
            raise NonFiniteLossError(self.steps_done + 1, str(error)) from error

    def descend(self, loss: torch.Tensor) -> None:
        """Gradient of the loss, clipped if the config says so, and the optimizer's update."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.embedder.finish_backward()
        distributed.average_gradients(self.loss.parameters())
        norm = nn.utils.get_total_norm([p.grad for p in self.modules.parameters() if p.grad is not None])
        self.watch.add(self.steps_done + 1, norm, "the norm of its gradient")
        if self.config.optim.clip_grad_norm is not None:
            nn.utils.clip_grads_with_norm_(self.modules.parameters(), self.config.optim.clip_grad_norm, norm)
        self.optimizer.step()

    def forget_graph(self) -> None:
        """Free what a captured step holds. The next steps are launched, and then captured anew."""
        if self._graph is not None:
            self._graph.reset()

    @property
    def is_captured(self) -> bool:
        """Whether steps are replayed as a CUDA graph now."""
        return self._graph is not None and self._graph.is_captured

    def check_weights(self) -> None:
        """Raise NonFiniteLossError if a loss or an updated weight is not finite. Call it before weights are saved.

        All processes raise it together: buffers of a backbone of your own may differ between them.
        """
        self.watch.check()
        state = self.modules.state_dict()
        bad = not_finite({name: tensor for name, tensor in state.items() if name not in self._infinite})
        if distributed.maximum(len(bad)):
            which = listed(bad, 1) if bad else "of another process"
            raise NonFiniteLossError(self.steps_done, f"it left weights that are not finite ({which})")

    def wants_compiling(self, steps: int) -> bool:
        """Whether a run of so many steps compiles the encoder: as its config says, or where it is known to pay."""
        return wants_compiling(self.config, self.encoder, self.device, steps)

    def compile(self, stopping: Callable[[], bool] = lambda: False) -> bool:
        """Compile the encoder for the views of the config. Returns whether it is compiled; see `compile_encoder`.

        Views of the first part of a run are compiled too: if they came later, a failure would end the run.
        """
        config, channels = self.config, self.config.input_channels
        images = config.batch_size // (distributed.world_size() * config.accumulate)

        def embed(recipe: ViewRecipe) -> torch.Tensor:
            shapes = [(images, crop.count, channels, crop.size, crop.size) for crop in recipe.crops]
            return self.embedder([torch.zeros(shape, device=self.device) for shape in shapes])

        self.is_compiled = compile_encoder(
            self.encoder,
            [partial(embed, recipe) for recipe in config.augment.parts],
            required=config.compile == "always",
            stopping=stopping,
        )
        return self.is_compiled


def create_loss(config: PretrainConfig, encoder: Encoder, labels: NDArray[np.int64] | None = None) -> nn.Module:
    """Loss that a config names, for the embeddings of an encoder.

    A ConfigError if the config records a module that was given in Python; a DataError if labels are needed and missing.
    """
    if isinstance(config.loss, CustomConfig):
        raise ConfigError(
            f"the loss is code from Python ({config.loss.module}), which no recipe or run folder holds: pass "
            "loss=module to ssole.pretrain or ssole.resume, or to ssole.extend"
        )
    fields = dataclasses.asdict(config.loss)
    name = fields.pop("name")
    if name == "supervised":
        if labels is None or labels.max() < 1:
            raise DataError("the loss 'supervised' needs labels of at least two classes, and the images have none")
        dims = config.projector.dim if config.projector.layers else feature_dim(encoder.backbone)
        fields |= {"classes": int(labels.max()) + 1, "dims": dims}
    with seeded_weights(config.seed):  # of losses that have some
        return LOSSES[name](**fields)
