"""Examinations that the tests of the doctor share, their printed page, and the keys of their JSON."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console

from ssole.doctor import Report, examine
from ssole.doctor.page import print_page

KEYS = {
    "ssole", "format", "verdict", "name", "images", "examined", "seconds", "unreadable", "ignored", "hidden", "classes",
    "contents", "exact_copies", "near_copies", "against", "findings", "statistics", "decode", "views", "suggestion",
    "recipe", "estimate", "preview",
}  # fmt: skip
CONTENTS_KEYS = {
    "formats", "modes", "width", "height", "shorter_side", "bytes", "total_bytes", "aspects", "one_size", "blank",
    "misnamed",
}  # fmt: skip
ESTIMATE_KEYS = {
    "device", "precision", "steps", "batch_size", "views", "step_seconds", "decode_seconds", "compile_seconds",
    "seconds", "steps_measured", "batch_measured", "memory_bytes", "memory_available", "disk_bytes",
    "disk_available",
}  # fmt: skip


def report_on(data: Any, **options: Any) -> Report:
    return examine(data, device="cpu", progress=False, **({"measure": False} | options))


def page(report: Report, width: int = 100) -> str:
    text = io.StringIO()
    print_page(report, Console(file=text, width=width))
    return text.getvalue()


def damage(folder: Path) -> Path:
    """The folder of pictures, with copies, a broken file and a blank image added."""
    shutil.copy(folder / "00.png", folder / "copy of 00.png")
    Image.open(folder / "01.png").save(folder / "01 again.jpg", quality=60)
    Image.new("RGB", (30, 20), "white").save(folder / "blank.png")
    (folder / "[bold]empty.jpg").write_bytes(b"")
    (folder / "notes.txt").write_text("not an image")
    (folder / ".thumbnails").write_bytes(b"")
    return folder


def made(**changes: Any) -> Report:
    """Report made by hand: 9 images, of which none can be read, with changes."""
    numbers: dict[str, Any] = {"name": "mine", "images": 9, "examined": 9, "seconds": 1.25, "hidden": 0}
    parts: dict[str, Any] = {"unreadable": [], "ignored": {}, "exact_copies": [], "near_copies": [], "findings": []}
    return Report(**{**numbers, **parts, **dict.fromkeys(("classes", "contents", "against")), **changes})
