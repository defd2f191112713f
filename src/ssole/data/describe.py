"""Text form of a data argument, as configs and run folders record it."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeGuard

from ssole.data.arrays import TORCHVISION
from ssole.data.base import Spec
from ssole.data.storage import has_pattern, is_remote
from ssole.errors import SECRET, DataError, listed, without_secrets

MAX_PATHS = 100_000
"""Most paths given one by one, which a run folder's config then lists."""
_IN_MEMORY = "in memory: "


def describe(spec: Spec) -> str | tuple[str, ...]:
    """Text that names the data in a config: names as they are, URLs without passwords and queries, absolute paths.

    So the data are found again from another working directory. Data in memory cannot be opened again from their text;
    see :func:`is_in_memory`. More than :data:`MAX_PATHS` paths are a DataError.
    """
    if are_paths(spec):
        if len(spec) > MAX_PATHS:
            raise DataError(
                f"{len(spec):,} paths are too many to be written down one by one (at most {MAX_PATHS:,}): "
                "write them to a text file, one a line, and give that"
            )
        return tuple(str(describe(part)) for part in spec)
    if isinstance(spec, (str, os.PathLike)):
        text, path = str(spec), os.path.expanduser(spec)
        if is_remote(text):
            return without_secrets(text)
        if text == "digits-m" or text.lower() in TORCHVISION:
            return text
        if os.path.exists(path):
            return str(Path(path).absolute())
        # brackets in the name of the working directory are no pattern
        return str(Path(glob.escape(os.getcwd())) / path) if has_pattern(text) else text
    return _IN_MEMORY + str(getattr(spec, "name", f"{type(spec).__name__} {getattr(spec, 'shape', '')}".strip()))


def canonical(spec: Spec) -> Spec:
    """Data argument as a resumed run will find it in the config, so that both runs open it with equal ids.

    That is the text of :func:`describe`. Data that it cannot open stay as they are: those in memory, or behind a URL
    that lost its secrets.
    """
    described = describe(spec)
    parts = [described] if isinstance(described, str) else described
    lost = is_in_memory(described) or any(is_remote(part) and SECRET in part for part in parts)
    return spec if lost else described


def is_in_memory(described: str | Sequence[str] | None) -> bool:
    """Whether a text of :func:`describe` stands for images in memory, which a config cannot name."""
    return isinstance(described, str) and described.startswith(_IN_MEMORY)


def why_not_reopened(described: str | Sequence[str] | None) -> str | None:
    """Reason why data named in a run folder or recipe are only opened if the user names them again; None if others.

    They were in memory, or are behind a URL, which anyone may have written there.
    """
    if any(map(is_remote, [described] if isinstance(described, str) else described or ())):
        return "images behind a URL, which are fetched only if you name it"
    return "images in memory" if is_in_memory(described) else None


def images_of_run(
    described: str | Sequence[str], run: str | os.PathLike[str], how: str = "pass --data"
) -> str | Sequence[str]:
    """Images that a run was trained on, as its config names them.

    A DataError, which says `how` to give them, if they cannot be opened again without the user, or are gone.
    """
    if (reason := why_not_reopened(described)) is not None:
        raise DataError(f"{run} was trained on {reason}: {how}")
    paths = [described] if isinstance(described, str) else described
    gone = [one for one in paths if os.path.isabs(one) and not has_pattern(one) and not os.path.exists(one)]
    if gone:
        raise DataError(f"the images of {run} are no longer there ({listed(gone, 1)}): {how}")
    return described


def are_paths(spec: Any) -> TypeGuard[Sequence[str | os.PathLike[str]]]:
    """Whether data are given as a list of paths or URLs."""
    return isinstance(spec, (list, tuple)) and all(isinstance(part, (str, os.PathLike)) for part in spec)
