"""`ssole select`: a few images that represent all, for labelling."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from ssole.cli.common import DataWords, Device, FilePath, OptionalFile, data_spec, show
from ssole.cli.search import IndexPath


@dataclass(frozen=True, kw_only=True)
class Select:
    """Choose images that represent all, for labelling, and write a list of them.

    Examples:
      ssole select photos-index --count 500
      ssole select photos-index --count 100 --out photos/to-label.csv
      ssole select photos-index --count 100 --given photos/to-label.csv --out photos/more.csv

    Greedy k-center: each image is the one that is least similar to those chosen before it. The first n of a list are
    what --count n chooses. A list in the folder of the images can be opened as data once it has labels.
    """

    index: IndexPath
    """Folder that ssole index wrote; or a run, whose images are indexed the first time."""
    count: Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="")] = None
    """Number of images to choose; by default 100, or all of a smaller index."""
    data: DataWords = ()
    """Images of a run's index, if it has to be made; by default those that the run was trained on."""
    given: OptionalFile = None
    """Images that need not be chosen, such as those labelled already: a list as ssole select writes it."""
    out: FilePath = Path("selected.csv")
    """List to write: path, label (where known) and similarity to the nearest image chosen before."""
    device: Device = "auto"

    def __call__(self) -> int:
        from ssole.search.matches import require_new, saved_ids
        from ssole.search.search import open_index

        require_new(self.out)
        given = [] if self.given is None else saved_ids(self.given)
        index = open_index(self.index, data=data_spec(self.data), device=self.device)
        found, worst = index.select(min(100, len(index)) if self.count is None else self.count, given=given)
        found.save(self.out)
        show(f"{len(found):,} of {len(index):,} images: {self.out}")
        chosen = "one of them or those given" if given else "one of them"
        print(f"every image has a cosine similarity of at least {worst:.3f} to {chosen}")
        return 0
