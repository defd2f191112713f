"""`ssole doctor`: what to know about images before training on them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from ssole.cli.common import OptionalFile, OptionalName, OptionalNumber, data_spec, require_file_to_write, show
from ssole.config import ConfigError
from ssole.doctor.examine import LIMIT


@dataclass(frozen=True, kw_only=True)
class Doctor:
    """Check images before training: damage, duplicates, the recipe to choose, and what a run would cost.

    Examples:
      ssole doctor photos/
      ssole doctor photos/ --against photos-to-test-on/ --preview views.png
      ssole doctor photos/ --recipe photos --json report.json

    No image is changed. Every finding says OK, look at this, or stop.
    Exit code: 0, or 1 when a finding says stop, or 2 for wrong input.
    """

    data: Annotated[
        tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="DATA", help_behavior_hint="(required)")
    ] = ()
    """Images, in any form that pretraining takes."""
    against: Annotated[tuple[str, ...], tyro.conf.arg(metavar="TEST", help_behavior_hint="")] = ()
    """Other images, such as those to test on. Images of TEST that are also in DATA are reported."""
    recipe: OptionalName = None
    """Estimate the cost of this recipe (a name, or a YAML file). By default, of the suggested recipe."""
    channels: OptionalNumber = None
    """Number of channels of images that are not photographs. By default, that of the recipe."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N: the device that the suggestion and the estimate are for."""
    preview: OptionalFile = None
    """Write a picture (.png) of some images and their views by the recipe."""
    json: OptionalFile = None
    """Also write everything as JSON. With -, JSON goes to standard output, and the page to standard error."""
    limit: Annotated[int, tyro.conf.arg(metavar="INT")] = LIMIT
    """Largest number of images to examine, evenly spaced over DATA (and over TEST)."""
    estimate: bool = True
    """Run a few training steps (about 20 s) to estimate time and memory."""

    def __call__(self) -> int:
        from rich.console import Console

        from ssole.doctor import examine
        from ssole.doctor.page import print_page

        if not self.data:
            example = "ssole doctor photos/ (ssole doctor --help explains the options)"
            raise ConfigError(f"which images? For example: {example}")
        to_stdout = self.json == Path("-")
        if self.json is not None and not to_stdout:
            require_file_to_write(self.json)
        report = examine(
            data_spec(self.data),
            against=data_spec(self.against),
            recipe=self.recipe,
            channels=self.channels,
            device=self.device,
            limit=self.limit,
            preview=self.preview,
            measure=self.estimate,
        )
        print_page(report, Console(stderr=to_stdout))
        if to_stdout:
            print(report.to_json(), end="")
        elif self.json is not None:
            report.save(self.json)
            show(f"\nsaved: {self.json}")
        return 1 if report.verdict == "stop" else 0
