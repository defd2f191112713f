"""Semi-supervised fine-tuning: the whole network and a classifier, trained on a small balanced part of the labels.

The protocol of Chen et al. 2020 (arXiv:2002.05709, appendix B.5): SGD with Nesterov momentum 0.9, learning rate
0.05 B / 256 for batches of B, no weight decay, 60 epochs on 1 % of the labels and 30 on 10 %. Differences: batches of
64 and a cosine schedule to 0, at least 200 steps, a classifier that begins at zero, and random shifts of up to an
eighth of the side as the only augmentation, since a mirror image may be of another class.

Shape suffixes: B images, C channels, S side.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssole.evaluation.datasets import Subset, shuffled_batches, shuffled_classes
from ssole.evaluation.preprocessing import Preprocessing
from ssole.progress import progress_bar
from ssole.runtime import exact_convolutions, one_thread

EPOCHS = {0.01: 60, 0.1: 30}
"""Epochs by share of the labels."""
BATCH, RATE, MOMENTUM, LEAST_STEPS = 64, 0.05, 0.9, 200


def balanced_split(labels: Tensor, share: float, *, seed: int = 0) -> Tensor:
    """Positions, ascending, of a share of the images: equally many of each class, at least one, chosen at random.

    A class with fewer images than that gives all it has. The result depends on the arguments alone, on every machine:
    labels (N,), integers, a seed, and a share in (0, 1]; another is a ValueError.
    """
    if not 0 < share <= 1:
        raise ValueError(f"the share of the labels is {share}; it must be above 0 and at most 1")
    classes = shuffled_classes(labels, torch.Generator().manual_seed(seed))
    each = max(1, round(share * len(labels) / len(classes)))
    return torch.cat([members[:each] for members in classes]).sort().values


def split_digest(positions: Tensor) -> str:
    """SHA-256 of the positions of a split, as little-endian 64-bit integers: equal splits have equal digests."""
    return hashlib.sha256(positions.cpu().numpy().astype("<i8").tobytes()).hexdigest()


class Classifier(nn.Module):
    """Network with a linear classifier of its features: images (B, C, S, S) to logits (B, classes)."""

    def __init__(self, backbone: nn.Module, features: int, classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.last = nn.Linear(features, classes)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.last(self.backbone(images).flatten(1).float())
        return logits


def fine_tune(
    model: nn.Module,
    images: Subset,
    preprocessing: Preprocessing,
    *,
    features: int,
    classes: int,
    epochs: int,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> Classifier:
    """Classifier that begins as a copy of a network and is trained on labelled images; the network stays as it is.

    Args:
        model: from (B, C, S, S) to features (B, F).
        images: labelled and readable.
        preprocessing: of the model.
        features, classes: F, and the number of classes.
        epochs: passes over the images; more where they have fewer than 200 steps.
        seed, device: seed of the batches, the shifts, and of layers such as dropout; where to train.

    A network without parameters, or training that diverges, is a ValueError.
    """
    if next(model.parameters(), None) is None:
        raise ValueError(f"{type(model).__name__} has no parameters to fine-tune")
    trained = copy.deepcopy(model).float().requires_grad_(True)
    batch, generator = min(BATCH, len(images)), torch.Generator().manual_seed(seed)
    steps = max(LEAST_STEPS, epochs * (len(images) // batch))
    with one_thread(), torch.random.fork_rng(devices=range(torch.cuda.device_count())), exact_convolutions():
        torch.manual_seed(seed)
        classifier = Classifier(trained, features, classes).to(device).train()
        optimizer = torch.optim.SGD(classifier.parameters(), lr=RATE * batch / 256, momentum=MOMENTUM, nesterov=True)

        def loss_of(rows: Tensor) -> Tensor:
            input_BCSS = shifted(preprocessing(images.get(rows), device=device), generator)
            return F.cross_entropy(classifier(input_BCSS), images.labels[rows].to(device))

        batches = shuffled_batches(len(images), batch, steps, generator)
        descend(optimizer, loss_of, batches, steps, what="fine-tuning", progress=progress)
    return classifier.eval()


def descend(
    optimizer: torch.optim.Optimizer,
    loss_of: Callable[[Tensor], Tensor],
    batches: Iterable[Tensor],
    steps: int,
    *,
    what: str,
    progress: bool,
) -> None:
    """Train on batches of positions, one a step, with a cosine schedule to 0; a loss not finite is a ValueError."""
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    with torch.enable_grad(), progress_bar(what, steps, enabled=progress) as advance:
        for rows in batches:
            loss = loss_of(rows)
            if not torch.isfinite(loss):
                raise ValueError(f"{what} diverged: the loss is not finite")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            advance()


def shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image (B, C, S, S) moved by up to an eighth of its side, mirrored at its edges."""
    side = images.shape[-1]
    most = side // 8
    if not most:
        return images
    moves = torch.randint(0, 2 * most + 1, (2, len(images)), generator=generator).to(images.device)
    padded = F.pad(images, (most,) * 4, mode="reflect")
    steps = torch.arange(side, device=images.device)
    rows, columns = moves[0, :, None] + steps, moves[1, :, None] + steps
    each = torch.arange(len(images), device=images.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[each, rows[:, :, None], columns[:, None]].permute(0, 3, 1, 2)
