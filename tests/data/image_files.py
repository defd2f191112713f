"""Images and archives that the tests of this folder share."""

from __future__ import annotations

import io
import os
import stat
import struct
import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import torch
from numpy.typing import NDArray
from PIL import Image

from ssole.data.base import Source
from ssole.data.decode import decode

RGB: NDArray[np.uint8] = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
GREY = RGB[..., 0]
DEEP: NDArray[np.uint16] = np.random.default_rng(3).integers(0, 65536, (5, 7, 6), dtype=np.uint16)


def png(value: int = 0, size: tuple[int, int] = (4, 4)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, (value, value, value)).save(out, "PNG")
    return out.getvalue()


def encode(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def tiff(pixels: NDArray[Any], **options: Any) -> bytes:
    tifffile.imwrite(out := io.BytesIO(), pixels, **options)
    return out.getvalue()


def decoded(data: Any) -> NDArray[Any]:
    """Back to (H, W, 3), after checking what decode promises of every result."""
    tensor = decode(data, where="here")
    assert tensor.dtype == torch.uint8
    assert tensor.shape[0] == 3
    assert tensor.is_contiguous()
    return tensor.permute(1, 2, 0).numpy()


def own(data: Any, channels: int, **options: Any) -> NDArray[Any]:
    """Back to (H, W, C), after checking what decode promises of every result."""
    tensor = decode(data, where="here", channels=channels, **options)
    assert tensor.dtype in (torch.uint8, torch.uint16)
    assert tensor.shape[0] == channels
    assert tensor.is_contiguous()
    return tensor.permute(1, 2, 0).numpy()


def value(source: Source, i: int) -> int:
    return int(decode(source.read(i), where=source.id(i))[0, 0, 0])


def ids(source: Source) -> list[str]:
    return [source.id(i) for i in range(len(source))]


def deep_png(pixels: np.ndarray) -> bytes:
    """(H, W, C) uint16 as a PNG of 16 bits, written by hand since Pillow writes them for grey alone."""
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[pixels.shape[2]]

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 16, kind, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tar(path: Path, members: dict[str, bytes], **options: Any) -> Path:
    """A tar with these members in this order; a name that ends in a slash is a folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            if name.endswith("/"):
                info.type = tarfile.DIRTYPE
            archive.addfile(info, io.BytesIO(data))
    return path


def tree(root: Path, *paths: str) -> Path:
    """Files at these paths, each holding a grey of its own number."""
    for number, path in enumerate(paths):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(png(number))
    return root


def special_files(folder: Path, suffix: str) -> list[Path]:
    """A pipe, a socket, a link to each, and a link to a device that never ends, by names of this suffix."""
    folder.mkdir(parents=True, exist_ok=True)
    pipe, socket, device = (folder / f"{name}{suffix}" for name in ("pipe", "socket", "device"))
    os.mkfifo(pipe)
    os.mknod(socket, stat.S_IFSOCK | 0o600)
    device.symlink_to("/dev/zero")
    links = [folder / f"link-to-{file.name}" for file in (pipe, socket)]
    for link, file in zip(links, (pipe, socket), strict=True):
        link.symlink_to(file)
    return [pipe, socket, device, *links]
