"""LossWatch: the check that a run's losses and gradients are finite, and its error."""

from __future__ import annotations

import math

import torch
from torch import nn

_HINT = "Training has diverged: lower optim.lr, or set optim.warmup_steps or optim.clip_grad_norm"
_CAPACITY = 4096  # values that the buffer holds; when it is full, they are checked early


class NonFiniteLossError(FloatingPointError):
    """Error for NaN or infinity in the loss, its gradient or the weights; it names the step, counted from 1.

    No checkpoint is written after the last good one.
    """

    def __init__(self, step: int, what: str, hint: str = _HINT) -> None:
        super().__init__(f"step {step}: {what}. {hint}")
        self.step, self.what = step, what


class LossWatch:
    """Check that raises NonFiniteLossError at the first value, such as a loss, that is NaN or infinite.

    On a CPU, each value is checked at once. On an accelerator that would make the host wait, so values are collected in
    a buffer on the device. :meth:`check` reads them, and still names the first bad step; it must be called before
    anything is logged or saved. The position in the buffer is on the device too, so that a CUDA graph can replay
    :meth:`add`. Up to the step `at_once_until`, values are looked at at once on an accelerator too.
    """

    def __init__(self, device: torch.device) -> None:
        self._is_cpu, self.at_once_until = device.type == "cpu", 0
        self._added: list[tuple[int, str]] = []
        self._buffer: torch.Tensor | None = None
        self._position: torch.Tensor | None = None

    def looks_at_once(self, step: int) -> bool:
        """Whether the values of a step, counted from 1, are looked at before its weights are updated."""
        return self._is_cpu or step <= self.at_once_until

    def add(self, step: int, value: torch.Tensor, name: str) -> None:
        """Add a value of a step, counted from 1."""
        if self.looks_at_once(step):
            self.check()
            self._require_finite(step, name, float(value.detach()))
            return
        if self._buffer is None or self._position is None:
            self._buffer = torch.zeros(_CAPACITY, dtype=torch.float64, device=value.device)
            self._position = torch.zeros(1, dtype=torch.int64, device=value.device)
        if not self.room:
            self.check()
        self._buffer.index_copy_(0, self._position, value.detach().double().view(1))
        self._position += 1
        self._added.append((step, name))

    def drop(self, count: int) -> list[str]:
        """Forget the newest `count` values, which a capture recorded but did not compute; returns their names."""
        names = [name for _, name in self._added[len(self._added) - count :]]
        del self._added[len(self._added) - count :]
        return names

    def record(self, step: int, names: list[str]) -> None:
        """Record the names of the values that a replayed graph has added in a step."""
        self._added += [(step, name) for name in names]

    @property
    def room(self) -> int:
        """Number of values that still fit into the buffer."""
        return _CAPACITY - len(self._added)

    @property
    def count(self) -> int:
        """Number of values in the buffer, which are not checked yet."""
        return len(self._added)

    def check(self) -> None:
        """Look at all values since the last check."""
        if not self._added or self._buffer is None or self._position is None:
            return
        added, self._added = self._added, []
        values = self._buffer[: len(added)].tolist()
        self._position.zero_()
        for (step, name), value in zip(added, values, strict=True):
            self._require_finite(step, name, value)

    def _require_finite(self, step: int, name: str, value: float) -> None:
        if not math.isfinite(value):
            raise NonFiniteLossError(step, f"{name} is {value}")


def infinite_buffers(given: dict[str, nn.Module | None]) -> set[str]:
    """Names of buffers of given modules that are infinite by design, such as masks."""
    return {
        f"{name}.{part}"
        for name, module in given.items()
        if module is not None
        for part, buffer in module.named_buffers(remove_duplicate=False)
        if buffer.isinf().any() and not buffer.isnan().any()
    }
