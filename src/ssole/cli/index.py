"""`ssole index`: features of images, in a folder to search in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ssole.cli.common import DataWords, Device, OptionalFolder, data_spec, run_config, run_data, show


@dataclass(frozen=True, kw_only=True)
class Index:
    """Write an index of images, to search among them.

    Examples:
      ssole index runs/mine
      ssole index runs/mine --data photos/ --out photos-index
      ssole index timm:resnet18 --data photos/ --out photos-index

    Then: ssole search photos-index one.jpg; ssole search photos-index --duplicates; ssole select photos-index.
    When it is interrupted, the same command goes on from there.
    """

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN_OR_MODEL")]
    """Run folder or its backbone.safetensors; or another network: timm:NAME, torchvision:NAME, timm:NAME=FILE."""
    data: DataWords = ()
    """Images, in any form that pretraining takes. By default, the data of the run."""
    out: OptionalFolder = None
    """Folder to write. By default, RUN/index."""
    half: bool = False
    """Store features in float16: half the disk space, and similarities that differ by up to 0.001."""
    cells: Literal["auto", "always", "never"] = "auto"
    """Divide images into cells, of which a search looks at a few. auto: more than a million, if faiss is installed."""
    device: Device = "auto"

    def __call__(self) -> int:
        from ssole.evaluation.models import is_run
        from ssole.search.cells import CELLS_ABOVE, PROBED
        from ssole.search.search import build_index

        data = data_spec(self.data)
        if data is None:
            data = run_data(run_config(Path(self.model)) if is_run(self.model) else None, self.model)
        made = build_index(self.model, data, self.out, half=self.half, cells=self.cells, device=self.device)
        if made.cells is not None:
            show(f"{len(made.cells.centres):,} cells: a search looks into the nearest {PROBED}, with --exact into all")
        elif len(made) > CELLS_ABOVE and self.cells == "auto":
            print(
                "searches look at all images: after pip install 'ssole[search]', an index in another folder has cells, "
                "and is quicker"
            )
        size = sum(file.stat().st_size for file in made.path.iterdir())
        show(f"{len(made):,} images, {made.features.shape[1]} features each: {made.path} ({size / 1e6:.1f} MB)")
        return 0
