"""From what was found to verdicts: what is fine, what a person should look at, what would stop a run or mislead."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from ssole.config import PretrainConfig
from ssole.doctor.contents import Contents
from ssole.doctor.estimate import Estimate
from ssole.doctor.report import Against, Copies, Finding, Level
from ssole.doctor.sample import Rate
from ssole.doctor.scan import Unreadable
from ssole.doctor.words import amount, share

MOST_UNREADABLE = 0.01  # share beyond which training stops: `max_unreadable` of ssole.data.store.ImageStore
FEW = 1000  # images
_MANY = 0.05  # share of the images from which a minor point is worth a look
_TIGHT = 0.8  # share of the memory from which other programs may tip the balance


def about_reading(images: int, examined: int, unreadable: Sequence[Unreadable]) -> Finding:
    """Whether the images can be read."""
    count = len(unreadable)
    if count == 0:
        which = "all images" if examined == images else f"all {examined:,} images examined"
        return Finding(level="ok", topic="unreadable", text=f"{which} can be read")
    level: Level = "look"
    advice = "training leaves them out and goes on; repair them if they matter"
    if count > math.ceil(MOST_UNREADABLE * examined) or count == examined:
        level, advice = "stop", "training stops beyond 1 %: repair or remove them first"
    text = f"cannot be read: {share(count, examined)}"
    return Finding(level=level, topic="unreadable", text=text, advice=advice)


def about_copies(exact: Sequence[Copies], near: Sequence[Copies], examined: int) -> Iterator[Finding]:
    """Whether images are there twice."""
    many = sum(len(group.copies) for group in exact)
    if many:
        advice = "training pushes copies apart as if they differed: keep one of each"
        text = f"exact copies of others: {share(many, examined)}"
        yield Finding(level="look", topic="exact_copies", text=text, advice=advice)
    else:
        yield Finding(level="ok", topic="exact_copies", text="no image is an exact copy of another")
    many = sum(len(group.copies) for group in near)
    if many:
        advice = "look at a few, and keep all copies of a picture on one side of a split for testing"
        text = f"near copies, which look the same as others: {share(many, examined)}"
        yield Finding(level="look", topic="near_copies", text=text, advice=advice)
    else:
        yield Finding(level="ok", topic="near_copies", text="no two different images look the same")


def about_leakage(against: Against) -> Finding:
    """Whether images of the second set are among those of the first."""
    exact = sum(leak.exact for leak in against.leaked)
    near = len(against.leaked) - exact
    if not against.leaked:
        return Finding(level="ok", topic="leakage", text=f"no image of {against.name} is here as well")
    kinds = [f"{exact:,} exactly"] * bool(exact) + [f"{near:,} nearly"] * bool(near)
    count = share(len(against.leaked), against.examined)
    return Finding(
        level="stop" if exact else "look",
        topic="leakage",
        text=f"from {against.name}, also found here: {count}, {' and '.join(kinds)}",
        advice="figures on them would flatter: take them out of one of the two",
    )


def about_contents(contents: Contents, examined: int) -> Iterator[Finding]:
    """Oddities that a run would not notice."""
    if count := len(contents.blank):
        advice = "there is nothing to learn from them: remove them, or find out where they come from"
        text = f"of a single colour: {share(count, examined)}"
        yield Finding(level="look", topic="blank", text=text, advice=advice)
    if count := len(contents.misnamed):
        text = f"of another format than their names say: {share(count, examined)}"
        advice = "harmless here, where the bytes decide; other programs may stumble"
        yield Finding(level="look", topic="misnamed", text=text, advice=advice)
    extreme = contents.aspects["tall"] + contents.aspects["wide"]
    if extreme > _MANY * examined:
        text = f"more than twice as long as wide: {share(extreme, examined)}"
        advice = "crops show a small part of them: cut them into several images if their parts stand alone"
        yield Finding(level="look", topic="aspect", text=text, advice=advice)


def about_recipe(config: PretrainConfig, name: str, contents: Contents, images: int) -> Iterator[Finding]:
    """Whether images and recipe fit each other."""
    if images < config.batch_size:
        text = f"{images:,} images do not fill one batch of {config.batch_size} ({name})"
        advice = f"pass --batch-size {max(2, images // 4)}, or find more images"
        yield Finding(level="stop", topic="too_few", text=text, advice=advice)
    elif images < FEW:
        text = f"{images:,} images are few to learn a representation from"
        yield Finding(level="look", topic="few", text=text, advice="compare with a pretrained network (timm) as well")
    side, size = contents.shorter_side.median, max(crop.size for crop in config.augment.crops)
    if side < size:
        text = f"half of the images have fewer than {side + 1} px on their shorter side; views of {name} have {size}"
        advice = f"views would be enlarged beyond what the images hold: pass --augment.crops.0.size {max(4, side)}"
        yield Finding(level="look", topic="enlarged", text=text, advice=advice)


def about_estimate(estimate: Estimate, decode: Rate, recipe: str) -> Iterator[Finding]:
    """Whether the recipe fits the machine."""
    part = estimate.memory_bytes / estimate.memory_available
    used = f"{recipe} needs about {amount(estimate.memory_bytes)} of {amount(estimate.memory_available)} of memory"
    if part > 1:
        advice = "lower --batch-size, --views or --augment.crops.0.size"
        yield Finding(level="stop", topic="memory", text=used, advice=advice)
    elif part > _TIGHT:
        advice = "close other programs, or lower --batch-size"
        yield Finding(level="look", topic="memory", text=used, advice=advice)
    else:
        yield Finding(level="ok", topic="memory", text=used)
    wanted = estimate.batch_size / estimate.step_seconds.median
    if decode.value < wanted:
        text = f"{decode.value:,.0f} images/s can be decoded and the network takes {wanted:,.0f}"
        advice = "the first epoch waits for them; later ones do not where decoded images fit into memory or the cache"
        yield Finding(level="look", topic="decoding", text=text, advice=advice)
