"""`ssole report`: one page that shows whether training worked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from ssole.cli.common import DataWords, Device, OptionalFile, data_spec, show
from ssole.config import ConfigError
from ssole.report.report import IMAGES
from ssole.report.report import report as write


@dataclass(frozen=True, kw_only=True)
class Report:
    """Write a page that shows whether training worked, and why; several runs are shown side by side.

    Examples:
      ssole report runs/mine
      ssole report runs/mine runs/other --out both.html
      ssole report runs/mine --live

    The page holds everything it needs: open it from the disk, or send it to someone.
    """

    runs: Annotated[
        tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUN", help_behavior_hint="(required)")
    ]
    """Run folder, or several to compare."""
    data: DataWords = ()
    """Images, in any form that pretraining takes. By default, the data of each run."""
    out: OptionalFile = None
    """File to write. By default, RUN/report.html of the first run."""
    images: int = IMAGES
    """Largest number of images to look at, drawn at random; at most 50,000."""
    columns: OptionalFile = None
    """CSV file whose first column names images: its other columns can colour the map."""
    device: Device = "auto"
    live: bool = False
    """Serve the page instead, on this machine only (127.0.0.1), and follow runs that are still training."""
    port: int = 0
    """With --live: port to listen on; 0 for any that is free."""
    every: float = 10.0
    """With --live: seconds after which the browser looks for news."""

    def __call__(self) -> int:
        options: dict[str, Any] = {name: getattr(self, name) for name in ("images", "columns", "device")}
        options["data"] = data_spec(self.data)
        if self.live:
            from ssole.report.live import serve

            if self.out is not None:
                raise ConfigError("--live serves the page and writes no file: leave out --out")

            def announce(url: str) -> None:
                print(f"{url}\nopen it in a browser on this machine; Ctrl-C ends it", flush=True)

            serve(list(self.runs), announce, port=self.port, every=self.every, **options)
            print("\nended")
            return 0
        path = write(list(self.runs), out=self.out, **options)
        show(f"{path} ({path.stat().st_size / 1e6:.1f} MB): open it in a browser")
        return 0
