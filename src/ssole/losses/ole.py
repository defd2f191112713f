"""The OLE loss, ancestor of SSOLE: low rank within each class, high rank over all rows.

Shape suffixes: N rows, D embedding dimensions.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ssole import distributed
from ssole.losses.base import EmbeddingLoss, check_number
from ssole.losses.nuclear import nuclear_norm


class OLETerms(NamedTuple):
    """Terms of the OLE loss: scalar tensors, differentiable."""

    total: Tensor
    """Loss: low_rank - high_rank."""
    low_rank: Tensor
    """Sum over classes of max(margin, nuclear norm), over the number of rows."""
    high_rank: Tensor
    """Nuclear norm of all rows, over their number."""


class OLELoss(EmbeddingLoss[OLETerms]):
    r"""Orthogonal low-rank embedding loss: (sum_c max(margin, ||Z_c||_*) - ||Z||_*) / rows, with exact gradients.

    Z holds all rows and Z_c those of class c. Rows are not normalized. The loss is at least 0. It is 0 when classes lie
    in orthogonal subspaces and no norm is below the margin. In a process group, Z is the global batch.
    Source: Lezama, Qiu, Muse and Sapiro, "OLE: Orthogonal Low-rank Embedding, A Plug and Play Geometric Loss for Deep
    Learning" (CVPR 2018).

    Without labels each image is its own class. This self-supervised baseline fails, which motivates SSOLE.

    Args:
        margin: norm below which a class is not pushed down further; finite and at least 0.
        check_input: whether to look for NaN and infinity, for which an accelerator must wait.
    """

    def __init__(self, margin: float = 1.0, *, check_input: bool = True) -> None:
        super().__init__(check_input=check_input)
        self.margin = check_number("margin", margin)

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Loss of embeddings `z`, a scalar in float32, or in float64 for float64.

        Args:
            z: (N, D) with labels, or (B, V, D) for V rows of each of B images. Any floating dtype.
            labels: (N,) or (B,) integers, any values. None takes each image as its own class and needs (B, V, D).

        Raises:
            ValueError: wrong shape or dtype, NaN or infinity.
        """
        return self.terms(z, labels).total

    def terms(self, z: Tensor, labels: Tensor | None = None) -> OLETerms:
        """Named terms of the loss, with the arguments and errors of `forward`."""
        _check(z, labels)
        with torch.autocast(z.device.type, enabled=False):
            z = self._global_batch(z, least=1)
            if labels is None:
                class_norms = nuclear_norm(z)
            else:
                labels = distributed.gather(labels)
                # One class at a time: their sizes differ.
                class_norms = torch.stack(
                    [nuclear_norm(z[labels == label].flatten(0, -2)) for label in labels.unique()]
                )
            rows_ND = z.flatten(0, -2)
            low, high, rows = class_norms.clamp(min=self.margin).sum(), nuclear_norm(rows_ND), len(rows_ND)
            return OLETerms((low - high) / rows, low / rows, high / rows)


def _check(z: Tensor, labels: Tensor | None) -> None:
    """ValueError unless embeddings and labels are such as :meth:`OLELoss.forward` takes."""
    if not isinstance(z, Tensor):
        raise ValueError(f"embeddings must be a torch.Tensor, got {type(z).__name__}")
    shape = tuple(z.shape)
    if z.ndim not in (2, 3) or z.numel() == 0:
        raise ValueError(f"embeddings must be non-empty, of shape (N rows, D) or (B images, V views, D), got {shape}")
    if not z.is_floating_point():
        raise ValueError(f"embeddings must be of a floating-point dtype, got {z.dtype}; convert them with .float()")
    if labels is None:
        if z.ndim == 2:
            raise ValueError(f"without labels each image is its own class: expected (B, V views, D), got {shape}")
        return
    if not isinstance(labels, Tensor):
        raise ValueError(f"labels must be a torch.Tensor, got {type(labels).__name__}")
    if labels.shape != z.shape[:1] or labels.is_floating_point() or labels.is_complex():
        raise ValueError(
            f"labels must be integers of shape ({shape[0]},), got {labels.dtype} of shape {tuple(labels.shape)}"
        )
