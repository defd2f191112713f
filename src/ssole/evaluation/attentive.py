"""Attentive probe: attention pooling over a frozen network's spatial features, then a linear classifier.

Mean pooling can hide what single positions know, so a probe with learnt pooling is the fairer test of methods that do
not train the mean (Chen et al. 2022, arXiv:2202.03026; Bardes et al. 2024, arXiv:2404.08471). Each of H learnt queries
attends to the standardised tokens, and takes its own part of the values, as in multi-head cross-attention; the key
projection is folded into the queries (Psomas et al. 2025, arXiv:2506.10178):

    a_h = softmax_t(x_t . q_h / sqrt(F))        y = concat_h( V_h sum_t a_ht x_t )        logits = W layernorm(y) + b

Trained by AdamW (rate 1e-3, weight decay 0.01, cosine schedule to 0) for 20 epochs in batches of 256, and for at least
500 steps.

Shape suffixes: N images, B images of a batch, T tokens, F features, H heads, C classes.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssole.evaluation.datasets import shuffled_batches
from ssole.evaluation.fine_tune import descend
from ssole.models.backbone import seeded_weights

EPOCHS, LEAST_STEPS, BATCH, RATE, DECAY, HEADS = 20, 500, 256, 1e-3, 0.01, 8
MOST_TOKENS = 49
"""Positions of the largest feature map; larger ones are averaged to 7 x 7."""


class NoTokensError(ValueError):
    """Error for a model without spatial features that the probe can take."""


class Tokens(nn.Module):
    """Spatial features (B, T, F) of a timm model, or a run's, as rows (B, T F), which :func:`extract` takes.

    A model without ``forward_features`` that gives (B, F, h, w), (B, h, w, F) or (B, T, F) is a NoTokensError.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.backbone: Any = getattr(model, "backbone", model)
        if not hasattr(self.backbone, "forward_features"):
            raise NoTokensError(f"{type(self.backbone).__name__} has no forward_features, which gives spatial features")
        self.width = 0
        """F; known after the first batch."""

    def forward(self, images: Tensor) -> Tensor:
        found = self.backbone.forward_features(images)
        width = getattr(self.backbone, "num_features", None)
        if isinstance(found, Tensor) and found.ndim == 4:
            if found.shape[1] != width and found.shape[3] == width:
                found = found.permute(0, 3, 1, 2)
            if found.shape[2] * found.shape[3] > MOST_TOKENS:
                found = F.adaptive_avg_pool2d(found, 7)
            found = found.flatten(2).transpose(1, 2)
        if not isinstance(found, Tensor) or found.ndim != 3:
            got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            name = type(self.backbone).__name__
            raise NoTokensError(f"forward_features of {name} gives {got}; (B, F, h, w) is needed")
        self.width = found.shape[2]
        return found.float().flatten(1)


class AttentiveProbe(nn.Module):
    """Attention pooling with learnt queries and a linear classifier: tokens (B, T, F) to logits (B, C)."""

    def __init__(self, features: int, classes: int, heads: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(features, affine=False)
        self.queries_HF = nn.Parameter(torch.randn(heads, features) * 0.02)
        self.values_HFO = nn.Parameter(torch.randn(heads, features, features // heads) / math.sqrt(features))
        self.last = nn.Sequential(nn.LayerNorm(features), nn.Linear(features, classes))

    def forward(self, tokens_BTF: Tensor) -> Tensor:
        input_BTF = self.norm(tokens_BTF.transpose(1, 2)).transpose(1, 2)
        share_BTH = (input_BTF @ self.queries_HF.T / math.sqrt(input_BTF.shape[2])).softmax(1)
        pooled_BHF = share_BTH.transpose(1, 2) @ input_BTF
        logits: Tensor = self.last(torch.einsum("bhf,hfo->bho", pooled_BHF, self.values_HFO).flatten(1))
        return logits

    @torch.no_grad()
    def scores(self, tokens: Tensor) -> Tensor:
        """Class probabilities (N, C) float64 of tokens (N, T, F), on the CPU."""
        logits = [self(part.to(self.queries_HF.device).float()).cpu() for part in tokens.split(BATCH)]
        return torch.cat(logits).softmax(1, dtype=torch.float64)


def attentive_probe(
    tokens: Tensor,
    labels: Tensor,
    *,
    classes: int,
    epochs: int = EPOCHS,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> AttentiveProbe:
    """Attentive probe, trained on the tokens of images.

    Args:
        tokens: (N, T, F), finite, floating point of any precision, of two or more images; or it is a ValueError.
        labels: (N,) integers in [0, C).
        classes, epochs: C, and passes over the images; more where they have fewer than 500 steps.
        seed, device: seed of the initial weights and of the batches; where to train.
    """
    if tokens.ndim != 3 or len(tokens) < 2:
        raise ValueError(f"the attentive probe takes tokens (N, T, F) of two or more images, got {tuple(tokens.shape)}")
    if not all(bool(torch.isfinite(part).all()) for part in tokens.split(1024)):
        raise ValueError("tokens hold NaN or infinity: the model's weights have diverged")
    width = tokens.shape[2]
    heads = max(number for number in (1, 2, 4, HEADS) if width % number == 0)
    with seeded_weights(seed):
        probe = AttentiveProbe(width, classes, heads).to(device)
    batch, generator = min(BATCH, len(tokens)), torch.Generator().manual_seed(seed)
    steps = max(LEAST_STEPS, len(tokens) // batch * epochs)
    optimizer = torch.optim.AdamW(probe.parameters(), lr=RATE, weight_decay=DECAY)

    def loss_of(rows: Tensor) -> Tensor:
        return F.cross_entropy(probe(tokens[rows].to(device).float()), labels[rows].to(device))

    batches = shuffled_batches(len(tokens), batch, steps, generator)
    descend(optimizer, loss_of, batches, steps, what="attentive probe", progress=progress)
    return probe.eval()
