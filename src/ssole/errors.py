"""Errors a user can act on, checks that raise them, and text from outside that is safe to show."""

from __future__ import annotations

import difflib
import math
import os
import re
import shlex
import subprocess
from collections.abc import Iterable, Sequence

_WINDOWS = os.name == "nt"
SECRET = "REMOVED"
"""Text in place of the password and the query of a URL."""

_URL = re.compile(
    r"""(?<![\w+.-])(?P<start>[A-Za-z][\w+.-]+://)(?P<user>[^/?\s@'"<>]*@)?(?P<path>[^?\s'"<>]*)(?P<query>\?[^\s'"<>)]*)?"""
)
# C0 and C1 control characters but tab and newline, which move the cursor, colour text or set a window's title; marks
# that reverse the direction of writing; and halves of surrogate pairs, which no encoding has
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def without_secrets(text: str) -> str:
    """Text with passwords and queries, which may be signatures, removed from URLs: ``https://host/a.tar?REMOVED``."""

    def plain(url: re.Match[str]) -> str:
        user = f"{SECRET}@" if url["user"] else ""
        return url["start"] + user + url["path"] + (f"?{SECRET}" if url["query"] else "")

    return _URL.sub(plain, text)


def printable(text: str) -> str:
    """Text without characters that steer a terminal: names of files may hold any. They are shown as ``\\x1b``."""
    return _UNPRINTABLE.sub(lambda match: ascii(match[0])[1:-1], text)


def valid_text(text: str) -> str:
    """Text that UTF-8 can encode: names of files may hold bytes that are no text. They are shown as ``\\udcff``."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def quoted(word: object) -> str:
    """Word or path as the system's shell takes it, for a command that a message gives. cmd.exe knows only ``"``."""
    return subprocess.list2cmdline([str(word)]) if _WINDOWS else shlex.quote(str(word))


def listed(names: Sequence[str], most: int) -> str:
    """The first of some names, and how many more there are: ``a, b and 3 more``."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def distinct(short: Sequence[str], long: Sequence[str]) -> list[str]:
    """Short names of things, and long ones for those of which several have the same short name."""
    return [one if short.count(one) == 1 else other for one, other in zip(short, long, strict=True)]


def did_you_mean(name: str, known: Iterable[str], *, most: int = 1) -> str:
    """Hint that ends a sentence about an unknown name, `` Did you mean 'x'?``; empty if no known name is close."""
    close = difflib.get_close_matches(name, list(known), n=most)
    return f" Did you mean {' or '.join(map(repr, close))}?" if close else ""


def one_line(error: object) -> str:
    """The first 300 characters of an error's message, in one line."""
    return " ".join(str(error).split())[:300]


class _UserError(ValueError):
    """Error that a user can act on. Passwords and queries are removed from the URLs in its message."""

    def __init__(self, message: str) -> None:
        super().__init__(without_secrets(message))


class ConfigError(_UserError):
    """Error for a setting that is unknown, of the wrong type or out of range. The message names it, without secrets.

    For an unknown setting, it also names the closest known one.
    """


class DiskError(ConfigError):
    """Error for a disk or folder that cannot take what is to be written there."""


class DataError(_UserError):
    """Error for images or labels that cannot be used. The message quotes what arrived and says what to do."""


def change_refused(words: str, change: str) -> ConfigError:
    """Error for a change since the start that `--allow-changes` does not name; `words` say what changed."""
    return ConfigError(f"{words}. Undo the change, or accept it by --allow-changes {change}")


def check(ok: bool, message: str) -> None:
    """Raise a ConfigError with the message unless `ok`."""
    if not ok:
        raise ConfigError(message)


def check_non_negative(name: str, value: float) -> None:
    """Raise a ConfigError unless a setting is at least 0 and finite."""
    check(0 <= value < math.inf, f"{name} must be at least 0 and finite, got {value}")


def check_positive(name: str, value: float) -> None:
    """Raise a ConfigError unless a setting is above 0 and finite."""
    check(0 < value < math.inf, f"{name} must be above 0 and finite, got {value}")
