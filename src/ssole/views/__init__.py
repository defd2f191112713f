"""From decoded images to augmented, normalised views."""

from __future__ import annotations

from ssole.views.augment import make_views

__all__ = ["make_views"]
