"""What would bring images sooner to a run that waits for them."""

from __future__ import annotations

from ssole.data.host import usable_cpus
from ssole.data.packed import PackedImages


def advice(packed: PackedImages | None, *, readable: int, workers: int) -> str | None:
    """In a line; None while the cache is being filled, which will bring them sooner by itself.

    Args:
        packed: The cache, if there is one.
        readable: How many images can be read, as far as is known.
        workers: Threads that decode.
    """
    if packed is not None and not packed.full:
        if len(packed) < readable:
            return None
        return (
            f"decoded images are read from {packed.folder}: a faster disk (name a folder there by SSOLE_CACHE) or more "
            "memory would help"
        )
    if workers < (processors := usable_cpus()):
        return f"images are decoded by {workers} threads, and {processors} processors are there: use more"
    if packed is not None:
        return (
            f"only {len(packed):,} of {readable:,} decoded images are kept in {packed.folder}: make room on the disk, "
            "or name a folder on a larger one by SSOLE_CACHE"
        )
    return "images are decoded anew in every epoch: keep them in a cache, store them smaller, or use more processors"
