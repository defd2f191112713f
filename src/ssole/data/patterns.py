"""Many files in one text: ``data/*.tar`` and ``shard-{0000..0099}.tar``."""

from __future__ import annotations

import glob
import os
import re

from ssole.data import remote
from ssole.data.remote import is_remote
from ssole.errors import DataError

_BRACES = re.compile(r"\{([^{}]*)\}")
_COUNT = re.compile(r"(\d+)\.\.(\d+)")
_MOST = 100_000  # files that braces may stand for: more is a slip


def has_pattern(text: str) -> bool:
    """Whether a text stands for other files than the one of that name."""
    return _has_magic(text) or _BRACES.search(text) is not None


def expand(pattern: str) -> list[str]:
    """The files that a pattern stands for.

    ``{0000..0099}`` counts, with as many digits as written, and ``{a,b}`` lists; whether these files exist is not
    looked at. ``*``, ``?`` and ``[...]`` match the files there are, sorted. In URLs only ``*`` does, for ``?`` begins
    a query there.

    Raises:
        DataError: where nothing matches, or braces stand for more than 100,000 files.
    """
    found: list[str] = []
    for one in _without_braces(pattern):
        if not _has_magic(one):
            found.append(one if is_remote(one) else os.path.expanduser(one))
        else:
            found += remote.matches(one) if is_remote(one) else _local_matches(one)
    if not found:
        raise DataError(f"No file matches the pattern {pattern!r}.")
    return found


def _has_magic(text: str) -> bool:
    return "*" in text if is_remote(text) else glob.has_magic(text)


def _local_matches(pattern: str) -> list[str]:
    return sorted(glob.glob(os.path.expanduser(pattern), recursive=True))


def _without_braces(pattern: str) -> list[str]:
    done, waiting = [], [pattern]
    while waiting:
        match = _BRACES.search(text := waiting.pop())
        if match is None:
            done.append(text)
        else:
            options = _options(match[1])
            waiting += [text[: match.start()] + option + text[match.end() :] for option in reversed(options)]
        if len(done) + len(waiting) > _MOST:
            raise DataError(f"The braces of {pattern!r} stand for more than {_MOST} files.")
    return list(dict.fromkeys(done))  # of braces in braces, some come twice


def _options(inside: str) -> list[str]:
    if count := _COUNT.fullmatch(inside):
        first, last = int(count[1]), int(count[2])
        return [str(number).zfill(len(count[1])) for number in range(first, min(last, first + _MOST) + 1)]
    return inside.split(",")
