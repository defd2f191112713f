"""How much of training is waiting for images."""

from __future__ import annotations

from collections import deque


class WaitShare:
    """Share of the last minute that was spent waiting.

    Args:
        window: seconds that the share is taken over.
        patience: seconds of training before a share is believed to last: the first batches are always waited for.
    """

    def __init__(self, *, window: float = 60.0, patience: float = 30.0) -> None:
        self._window, self._patience = window, patience
        self._points: deque[tuple[float, float]] = deque()

    def add(self, trained: float, waited: float) -> None:
        """Seconds of training so far, and how many of them were spent waiting. Neither ever falls."""
        self._points.append((trained, waited))
        while len(self._points) > 2 and self._points[1][0] <= trained - self._window:
            self._points.popleft()

    @property
    def share(self) -> float:
        """In [0, 1]; 0 before any time has passed."""
        if not self._points:
            return 0.0
        (begin, before), (end, after) = self._points[0], self._points[-1]
        return min(1.0, (after - before) / (end - begin)) if end > begin else 0.0

    def exceeds(self, limit: float) -> bool:
        """Whether the share is above the limit, and not only at the start."""
        return bool(self._points) and self._points[-1][0] >= self._patience and self.share > limit
