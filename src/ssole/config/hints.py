"""Explanations of wrong settings: what pydantic found, in words, and the names that mistyped ones may stand for."""

from __future__ import annotations

import dataclasses
import difflib
import re
import typing
from collections.abc import Iterator
from typing import Any

from ssole.config.losses import LOSS_CONFIGS, LossConfig
from ssole.config.schema import PretrainConfig


def explain(kind: str, location: tuple[int | str, ...], message: str, given: Any) -> str:
    """Error message for one of pydantic's findings."""
    if location[:1] in (("data",), ("eval_data",)):  # pydantic has one finding for each type that these may have
        return f"{location[0]} must be a name, a path or a list of paths, got {given!r}"
    name = ".".join(str(part) for part in location)
    if kind == "unexpected_keyword_argument":
        return f"unknown setting {name!r}.{hint_at_setting(name)}"
    if kind == "value_error":  # a check in schema.py, whose message is complete
        text = message.removeprefix("Value error, ")
        return f"{name}: {text}" if name else text
    is_number = isinstance(given, str) and re.fullmatch(r"[+-]?\d+e[+-]?\d+", given, re.IGNORECASE)
    hint = "; YAML takes 1e-4 for text, and 1.0e-4 for a number" if is_number else ""
    return f"{name}: {message}, got {given!r}{hint}"


def hint_at_setting(name: str) -> str:
    """Hint at the setting that was meant: one with the same last part, a close name, or a last part with that word."""
    known = list(_field_paths(PretrainConfig))
    last = {path: path.rsplit(".", 1)[-1] for path in known}
    asked = name.rsplit(".", 1)[-1]
    if asked == "pretrained":  # the word of timm and torchvision
        return " timm's pretrained weights are init: timm (--init timm)."
    if name in known:  # known and refused, as it is a field of other losses only
        others = [loss for loss, cls in LOSS_CONFIGS.items() if asked in cls.__dataclass_fields__]
        if not others:  # as in a YAML file, which has no dotted names
            return f" Write it as {name.replace('.', ': {', 1)}: ...}}."
        return f" It belongs to the loss {' or '.join(others)}: choose that by loss.name first."
    exact = [path for path in known if last[path] == asked]
    word = [path for path in known if asked in last[path].split("_")]
    similar = difflib.get_close_matches(asked, list(last.values()), n=1)
    by_last_part = [path for path in known if last[path] in similar]
    found = exact or difflib.get_close_matches(name, known, n=1) or word or by_last_part
    return f" Did you mean {found[0]!r}?" if found else ""


def _field_paths(cls: type, prefix: str = "") -> Iterator[str]:
    """Dotted names of all settings below a config class."""
    for name, hint in typing.get_type_hints(cls).items():
        if typing.get_origin(hint) is typing.ClassVar:
            continue
        if dataclasses.is_dataclass(hint):
            yield from _field_paths(typing.cast(type, hint), f"{prefix}{name}.")
        elif hint is LossConfig:
            for loss in LOSS_CONFIGS.values():
                yield from _field_paths(loss, f"{prefix}{name}.")
        else:
            yield prefix + name
