"""Errors a user can act on."""

from __future__ import annotations


class ConfigError(ValueError):
    """Error for a setting that is unknown, of the wrong type or out of range. The message names it.

    For an unknown setting, the message also names the closest known one.
    """


class DataError(ValueError):
    """Something is wrong with the images or labels that were given; the message quotes what and says what to do."""
