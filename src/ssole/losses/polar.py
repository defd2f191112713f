"""placeholder"""
from __future__ import annotations
from torch import Tensor


def polar_root(g_Nkk: Tensor) -> tuple[Tensor, Tensor]:
    raise NotImplementedError
