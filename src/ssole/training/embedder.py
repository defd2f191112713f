"""Embedder: embeddings of views and the gradients of the encoder's weights, over processes and over parts of a batch.

With `accumulate` = K > 1, only a K-th of a batch is in the encoder at a time, and the loss still sees the whole batch.
That takes two passes: the first embeds all parts without keeping anything for the backward pass; the loss gives its
gradient with respect to the embeddings; and the second pass embeds each part once more, with the same random numbers,
and takes that gradient back through the encoder. The gradient of the weights is that of the whole batch at once. Batch
norm sees one part (of all processes) at a time.
Source: Gao et al. 2021, "Scaling deep contrastive learning batch size under memory limited setup".

Shape suffixes: B images, V views, C channels, S side of a crop, D embedding dimensions.
"""

from __future__ import annotations

import inspect
import warnings
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from ssole import distributed
from ssole.config import PretrainConfig
from ssole.models.backbone import create_encoder
from ssole.models.batch_norm import kept_buffers, synchronize_batch_norms
from ssole.models.cpu import speed_up_convolutions
from ssole.models.custom import CustomBackbone
from ssole.rng import Use, scalar_bits
from ssole.runtime import resolve_precision


class Embedder:
    """Forward and backward pass of the encoder, over processes and over parts of a batch.

    The `encoder` is in training mode, in the form that trains fastest on the device. Its initial weights are a function
    of `config.seed`. `backbone` is a module of your own, in place of the one that `config.model` names.
    """

    def __init__(self, config: PretrainConfig, device: torch.device, backbone: nn.Module | None = None) -> None:
        self._seed, self._accumulate, self._device = config.seed, config.accumulate, device
        self.encoder = create_encoder(config, backbone)
        _place(self.encoder, device).train()
        if device.type == "cpu":
            speed_up_convolutions(self.encoder)
        shared = distributed.world_size() > 1
        if shared:
            synchronize_batch_norms(self.encoder, device)
        self._forward: nn.Module = _Forward(self.encoder, resolve_precision(config.precision, device))
        self._has_trainable_weights = any(parameter.requires_grad for parameter in self.encoder.parameters())
        if shared and self._has_trainable_weights:  # else the loss alone has weights to learn
            self._forward = self._on_all_processes(self._forward, config)
        self._second_pass: tuple[list[list[torch.Tensor]], torch.Tensor, int] | None = None

    def _on_all_processes(self, forward: nn.Module, config: PretrainConfig) -> nn.Module:
        shapes = [(2, 1, config.input_channels, crop.size, crop.size) for crop in config.augment.crops]
        with kept_buffers(self.encoder):
            forward(*[torch.zeros(shape, device=self._device) for shape in shapes]).sum().backward()
        # Weights that the embeddings do not depend on would never be ready to be averaged, so they are hidden here. The
        # optimizer must see them: its state is numbered by all weights, and a run may go on with one process.
        unused = [p for p in self.encoder.parameters() if p.requires_grad and p.grad is None]
        self.encoder.zero_grad()
        for parameter in unused:
            parameter.requires_grad_(False)
        # a harmless note about 1x1 convolutions, whose weights have two memory formats at once
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
        names = inspect.signature(DistributedDataParallel).parameters  # torch has two names for this one
        buffers = "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers"
        options: dict[str, Any] = {buffers: _may_differ(self.encoder.backbone)}
        shared = DistributedDataParallel(forward, gradient_as_bucket_view=True, **options)
        for parameter in unused:
            parameter.requires_grad_(True)
        return shared

    def __call__(self, views: list[torch.Tensor]) -> torch.Tensor:
        """Embeddings (B, V, D) of views; crop groups (B, V_g, C, S_g, S_g) are stacked along V."""
        z_BVD: torch.Tensor = self._forward(*views)
        return z_BVD

    def seed(self, step: int, part: int = 0) -> None:
        """Seed torch's generator for a part of a step's batch, by its number among all processes' parts."""
        torch.manual_seed(scalar_bits(self._seed, step, Use.LAYERS) + distributed.rank() * self._accumulate + part)

    def embed(self, views: list[torch.Tensor], step: int) -> torch.Tensor:
        """Embeddings of the views of a step, for a loss whose gradient :meth:`finish_backward` completes.

        torch's generator, which dropout and similar layers draw from, is seeded with a function of (seed, step, part):
        by :meth:`seed`, which the caller calls before, because a CUDA graph cannot replay it, and here once more for
        each of several parts.
        """
        parts = [list(part) for part in zip(*(group.chunk(self._accumulate) for group in views), strict=True)]
        if len(parts) == 1:
            z_BVD = self(views)
        elif not self._has_trainable_weights:  # which needs no second pass
            z_BVD = torch.cat([self._part(part, step, k) for k, part in enumerate(parts)])
        else:
            with torch.no_grad(), kept_buffers(self.encoder):
                z_BVD = torch.cat([self._part(part, step, k) for k, part in enumerate(parts)]).requires_grad_()
            self._second_pass = parts, z_BVD, step
        if len(parts) > 1 or distributed.world_size() > 1:
            # what the loss draws must be the same on all processes, and whatever the number of parts
            torch.manual_seed(scalar_bits(self._seed, step, Use.LAYERS))
        return z_BVD

    def finish_backward(self) -> None:
        """Second pass, after the backward pass of the loss: the gradients of the weights, averaged over processes.

        A ValueError if the loss has given the encoder no gradient.
        """
        second, self._second_pass = self._second_pass, None
        heads = self.encoder.parameters() if second is None else [second[1]]
        if self._has_trainable_weights and all(tensor.grad is None for tensor in heads):
            raise ValueError(
                "the loss gives the encoder no gradient, so it would learn nothing: do not detach the embeddings"
            )
        if second is None:
            return
        parts, z_BVD, step = second
        assert z_BVD.grad is not None
        ddp = self._forward if isinstance(self._forward, DistributedDataParallel) else None
        for k, (part, grad_bVD) in enumerate(zip(parts, z_BVD.grad.chunk(len(parts)), strict=True)):
            last = k == len(parts) - 1  # whose backward averages the gradients of all parts
            with nullcontext() if last or ddp is None else ddp.no_sync():
                self._part(part, step, k).backward(grad_bVD)

    def _part(self, views: list[torch.Tensor], step: int, part: int) -> torch.Tensor:
        self.seed(step, part)
        return self(views)


def _may_differ(backbone: nn.Module) -> bool:
    """Whether a backbone may have buffers that differ between processes: code from elsewhere writes them."""
    others = [module for module in backbone.modules() if not isinstance(module, _BatchNorm)]
    return isinstance(backbone, CustomBackbone) and any(len(list(m.buffers(recurse=False))) for m in others)


def _place(model: nn.Module, device: torch.device) -> nn.Module:
    """Model on a device, in place, with weights of four dimensions in the order of channels last."""
    if all(tensor.ndim != 5 for tensor in (*model.parameters(), *model.buffers())):
        return model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]
    model.to(device)  # torch has no such order for five dimensions, and raises an error
    for parameter in model.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.to(memory_format=torch.channels_last)
    return model


class _Forward(nn.Module):
    """Encoder on all crop groups, in the precision of the run."""

    def __init__(self, encoder: nn.Module, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.encoder, self._dtype = encoder, dtype

    def forward(self, *views: torch.Tensor) -> torch.Tensor:
        """Crop groups (B, V_g, C, S_g, S_g) to embeddings (B, V, D), float32 or better for any loss."""
        with torch.autocast(views[0].device.type, dtype=self._dtype, enabled=self._dtype is not None):
            groups = [
                self.encoder(x.flatten(0, 1).contiguous(memory_format=torch.channels_last)).unflatten(0, x.shape[:2])
                for x in views
            ]
        z_BVD = torch.cat(groups, dim=1)
        return z_BVD if z_BVD.dtype == torch.float64 else z_BVD.float()
