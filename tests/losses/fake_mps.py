"""Stand-in for Apple's GPU (MPS): tensors that say they are there, and that do not become float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

_MPS = torch.device("mps", 0)
_move = Tensor.to


class OnMps(Tensor):
    """Tensor that says that it is on an Apple GPU. What is computed from it is there too."""

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """The GPU."""
        return _MPS

    def cpu(self, *_: Any, **__: Any) -> Tensor:
        """The same values as a plain tensor."""
        return self.as_subclass(Tensor)

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, given: Any = (), named: Any = None) -> Any:
        out = super().__torch_function__(function, types, given, named or {})
        if isinstance(out, OnMps) and out.dtype == torch.float64:
            raise TypeError("MPS has no float64")
        return out


def use_fake_mps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let copies to MPS go to the stand-in; torch refuses them where it was built without."""

    def to(x: Tensor, *where: Any, **named: Any) -> Any:
        return x.as_subclass(OnMps) if _MPS in where else _move(x, *where, **named)

    monkeypatch.setattr(Tensor, "to", to)
