"""`ssole views`: a picture of images and their views."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from ssole.cli.common import FilePath, data_spec, picture_format, require_apart, show
from ssole.config import DEFAULT_RECIPE, PRESETS, ConfigError, load, view_preset
from ssole.data.folder import image_suffixes
from ssole.data.objects import ObjectSource
from ssole.data.sources import open_source
from ssole.data.thumbnail import images_to_show
from ssole.files import write_atomically
from ssole.progress import say


@dataclass(frozen=True, kw_only=True)
class Views:
    """Draw images and their views by a recipe: one row for each image, followed by its views.

    Examples:
      ssole views photos/ --recipe small-images
      ssole views photos/one.jpg --recipe aerial --out one.png
    """

    data: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="DATA")] = ("digits-m",)
    """One image file or several, or data in any form that pretraining takes."""
    recipe: str = DEFAULT_RECIPE
    """A recipe's name, the path of a YAML file, or a preset: natural, small, digits, aerial, grey, channels."""
    out: FilePath = Path("views.png")
    """Picture to write: .png, .jpg or another format that Pillow writes."""
    images: int = 6
    """Number of images, evenly spaced over the data."""
    seed: int = 0
    """Seed of the run whose views are drawn."""
    epoch: int = 0
    """Epoch of the run whose views are drawn."""
    channels: int | None = None
    """Channels of images that are not photographs, kept at full depth."""

    def __call__(self) -> int:
        from ssole.views.picture import picture

        config = None if self.recipe in PRESETS else load(self.recipe)
        recipe = view_preset(self.recipe) if config is None else config.augment
        channels = config.channels if config is not None and self.channels is None else self.channels
        file_format = picture_format(self.out)
        require_apart(self.out, self.data)
        if self.images < 1:
            raise ConfigError(f"--images must be at least 1, got {self.images}")
        paths = [Path(word) for word in self.data]
        are_images = all(path.suffix.lower() in image_suffixes() and path.is_file() for path in paths)
        source = ObjectSource(self.data) if are_images else open_source(data_spec(self.data))
        size = recipe.useful_size
        images, indices, errors = images_to_show(source, self.images, shrink_to=size, channels=channels)
        for error in errors:
            say(f"left out: {error}")
        if not images:
            raise errors[0]
        sheet = picture(images, indices, recipe=recipe, seed=self.seed, epoch=self.epoch)
        write_atomically(self.out, lambda path: sheet.save(path, format=file_format))
        show(f"{len(images)} image{'s' * (len(images) > 1)} and their views by {self.recipe}: {self.out}")
        return 0
