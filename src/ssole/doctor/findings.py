"""Findings: verdicts on a data set and a recipe, each with its text and what to do about it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from ssole.config import PretrainConfig, ViewRecipe
from ssole.doctor.contents import Contents, Copies
from ssole.doctor.estimate import Estimate
from ssole.doctor.report import Finding, SecondSet
from ssole.doctor.scan import ChannelStatistics, Rate, Unreadable
from ssole.progress import data_size

FEW_IMAGES = 1000
FAR_TOO_FEW = 100  # by judgement: three of the smallest batches that are suggested
_MANY_SHARE = 0.05  # smallest share of the images for reporting a minor point
_TIGHT = 0.8  # share of the memory above which other programs may need the rest


def check_readable(images: int, examined: int, unreadable: Sequence[Unreadable], *, max_unreadable: float) -> Finding:
    """Finding on unreadable images; `max_unreadable` is the share that the recipe allows."""
    count = len(unreadable)
    if count == 0:
        which = "all images" if examined == images else f"all {examined:,} images examined"
        return Finding("ok", "unreadable", f"{which} can be read")
    text = f"cannot be read: {_share(count, examined)}"
    share = share_to_allow(count, examined, max_unreadable)
    if share > max_unreadable or count == examined:
        advice = f"training stops if more than {100 * max_unreadable:g} % cannot be read: repair or remove them first"
        if count < examined:
            advice += f", or allow them: --max-unreadable {share:g}"
        return Finding("stop", "unreadable", text, advice)
    advice = "training leaves them out and continues; repair them if you need them"
    return Finding("look", "unreadable", text, advice)


def share_to_allow(unreadable: int, examined: int, allowed: float) -> float:
    """Share of unreadable images that training must allow: `allowed` if that is enough, else a whole percentage."""
    if unreadable <= math.ceil(allowed * examined):
        return allowed
    return math.ceil(100 * unreadable / examined) / 100


def check_duplicates(exact: Sequence[Copies], near: Sequence[Copies], images: int, examined: int) -> Iterator[Finding]:
    """Findings on exact and near copies among the images that were examined."""
    no_copy, no_twin = "no image is an exact copy of another", "no two different images look the same"
    if examined != images:
        none = f"none of the {examined:,} images examined, of {images:,},"
        no_copy, no_twin = f"{none} is an exact copy of another", f"{none} looks the same as a different one"
    if count := sum(len(group.copies) for group in exact):
        advice = "training pushes copies apart as if they were different images: keep one of each"
        text = f"exact copies of other images: {_share(count, examined)}"
        yield Finding("look", "exact_copies", text, advice)
    else:
        yield Finding("ok", "exact_copies", no_copy)
    if count := sum(len(group.copies) for group in near):
        advice = "look at a few, and keep all copies of an image in the same split"
        text = f"near copies, which look like other images: {_share(count, examined)}"
        yield Finding("look", "near_copies", text, advice)
    else:
        yield Finding("ok", "near_copies", no_twin)


def check_leakage(second: SecondSet, images: int, examined: int) -> Finding:
    """Finding on images that are in both sets; of the first, which has so many images, `examined` were read."""
    exact = sum(leak.exact for leak in second.leaked)
    near = len(second.leaked) - exact
    if not second.leaked:
        text = f"no image of {second.name} is also here"
        if (second.examined, examined) != (second.images, images):
            text = f"none of {second.examined:,} images of {second.name} is among {examined:,} images examined here"
        if not second.unreadable:
            return Finding("ok", "leakage", text)
        text += f", but of {second.name} cannot be read: {_share(len(second.unreadable), second.examined)}"
        return Finding("look", "leakage", text, "repair or remove them: nothing is known of these")
    kinds = [f"{exact:,} exactly"] * bool(exact) + [f"{near:,} nearly"] * bool(near)
    count = _share(len(second.leaked), second.examined)
    text = f"from {second.name}, also found here: {count}, {' and '.join(kinds)}"
    advice = "accuracy measured on them would be too high: remove them from one of the two sets"
    return Finding("stop" if exact else "look", "leakage", text, advice)


def check_contents(contents: Contents, examined: int) -> Iterator[Finding]:
    """Findings on blank, misnamed and very long images. None of them stops a run."""
    if count := len(contents.blank):
        advice = "nothing can be learned from them: remove them, or find out where they come from"
        yield Finding("look", "blank", f"have a single colour: {_share(count, examined)}", advice)
    if count := len(contents.misnamed):
        text = f"have another format than their names say: {_share(count, examined)}"
        advice = "training reads the format from the bytes, so they do no harm here; other programs may fail on them"
        yield Finding("look", "misnamed", text, advice)
    count = contents.aspects["tall"] + contents.aspects["wide"]
    if count > _MANY_SHARE * examined:
        text = f"have one side more than twice as long as the other: {_share(count, examined)}"
        advice = "crops show a small part of them: cut them into several images if each part makes sense alone"
        yield Finding("look", "aspect", text, advice)


def check_recipe(config: PretrainConfig, name: str, contents: Contents, images: int) -> Iterator[Finding]:
    """Findings on whether a recipe suits the number and size of the images."""
    if images < config.batch_size:
        text = f"{images:,} images do not fill one batch of {config.batch_size} ({name})"
        advice = f"pass --batch-size {max(2, images // 4)}, or find more images"
        yield Finding("stop", "too_few", text, advice)
    elif images < FEW_IMAGES:
        few, advice = "few", "compare with a pretrained network (timm) as well"
        if images < FAR_TOO_FEW:
            few, advice = "far too few", "find more images, or use a pretrained network (timm)"
        yield Finding("look", "few", f"{images:,} images are {few} for learning a representation", advice)
    side, size = contents.shorter_side.median, max(crop.size for crop in config.augment.crops)
    if side < size:
        text = f"half of the images have a shorter side of {side} px or less; views of {name} have {size} px"
        advice = f"views would be enlarged and gain no detail: pass --augment.crops.0.size {max(4, side)}"
        yield Finding("look", "enlarged", text, advice)


def check_statistics(statistics: ChannelStatistics, recipe: ViewRecipe, images: int) -> Iterator[Finding]:
    """Finding on constant channels, which a run that measures mean and std cannot normalise."""
    constant = ", ".join(str(channel) for channel, std in enumerate(statistics.std) if std == 0)
    if not constant or recipe.std is not None:
        return
    advice = "leave them out, or give augment.mean and augment.std"
    if statistics.images == images:
        text = f"have the same value everywhere, so that they cannot be normalised: channels {constant}"
        yield Finding("stop", "constant", text, advice)
    else:  # a run measures more images than the doctor
        text = f"have the same value in all of {statistics.images:,} images measured: channels {constant}"
        yield Finding("look", "constant", text, f"a channel that is constant cannot be normalised: {advice}")


def check_estimate(estimate: Estimate, decode: Rate, recipe: str) -> Iterator[Finding]:
    """Findings on the memory that a recipe needs, and on the speed of decoding."""
    share = estimate.memory_bytes / estimate.memory_available
    available = data_size(estimate.memory_available)
    text = f"{recipe} needs about {data_size(estimate.memory_bytes)} of memory, of {available} in all"
    if share > 1:
        yield Finding("stop", "memory", text, "lower --batch-size, --views or --augment.crops.0.size")
    elif share > _TIGHT:
        yield Finding("look", "memory", text, "close other programs, or lower --batch-size")
    else:
        yield Finding("ok", "memory", text)
    if estimate.disk_bytes > estimate.disk_available:
        text = f"checkpoints need at least {data_size(estimate.disk_bytes)}, and the disk has "
        yield Finding(
            "look", "disk", f"{text}{data_size(estimate.disk_available)} free", "choose another disk by --out"
        )
    needed = estimate.batch_size / estimate.step_seconds.median
    if decode.value < needed:
        text = f"{decode.value:,.0f} images/s can be decoded, and the network can train on {needed:,.0f} images/s"
        advice = "the first epoch waits for decoding; later ones do not if decoded images fit into memory or the cache"
        yield Finding("look", "decoding", text, advice)


def _share(count: int, total: int) -> str:
    """``12 of 1,000 images (1.2 %)``."""
    percent = 100 * count / total
    text = "under 0.1" if percent < 0.1 else f"{percent:.1f}" if percent < 10 else f"{percent:.0f}"
    return f"{count:,} of {total:,} images ({text} %)"
