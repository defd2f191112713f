"""Errors a user can act on."""

from __future__ import annotations


class DataError(ValueError):
    """Something is wrong with the images or labels that were given; the message quotes what and says what to do."""
