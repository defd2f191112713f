"""Which images each step sees: a pure function of the seed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from ssole.config import PretrainConfig
from ssole.errors import DataError
from ssole.rng import epoch_order


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Epochs are permutations drawn from (seed, epoch); the last, incomplete batch of each is dropped."""

    images: int
    batch_size: int
    seed: int
    total: int
    """Steps of the whole run."""

    @property
    def steps_per_epoch(self) -> int:
        return self.images // self.batch_size

    def epoch(self, step: int) -> int:
        """The epoch of a step; both count from 0."""
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
    """The plan of a run over so many images.

    Raises:
        DataError: fewer images than a batch.
    """
    if images < config.batch_size:
        advice = f"pass --batch-size {images} or less, or more images" if images > 1 else "give more images"
        raise DataError(f"a batch of {config.batch_size} images was asked for and the data hold {images}: {advice}")
    total = config.steps if config.steps is not None else config.epochs * (images // config.batch_size)
    return Plan(images=images, batch_size=config.batch_size, seed=config.seed, total=total)
