"""Encoded images of many sizes, and a source of them that counts its reads."""

from __future__ import annotations

import io
import threading
import time

import numpy as np
from PIL import Image

from ssole.data.base import Source


def png(height: int, width: int, seed: int) -> bytes:
    """An image of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def pngs(n: int) -> list[bytes]:
    """Images of many sizes: none of them equal."""
    return [png(8 + i % 5, 9 + i % 3, i) for i in range(n)]


class Listed(Source):
    """A source over a list of encoded images or arrays."""

    def __init__(self, items, *, name="listed", seconds=0.0):
        self.items, self.name, self.seconds = items, name, seconds
        self.reads, self.lock = [], threading.Lock()

    def __len__(self):
        return len(self.items)

    def id(self, i):
        return f"item {i}"

    def read(self, i):
        with self.lock:
            self.reads.append(i)
        time.sleep(self.seconds)
        return self.items[i]


def wait_until_still(source: Listed) -> int:
    """How many reads there were, once no more come."""
    seen = -1
    while seen != len(source.reads):
        seen = len(source.reads)
        time.sleep(0.3 + 10 * source.seconds)
    return seen
