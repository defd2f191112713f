"""`ssole select`: a few images that represent all, for labelling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ssole.cli.common import DataWords, Device, FilePath, OptionalFile, data_spec, parse, show
from ssole.cli.search import IndexPath


@dataclass(frozen=True, kw_only=True)
class SelectArgs:
    """Options of `ssole select`."""

    index: IndexPath
    """Folder that ssole index wrote; or a run, whose images are indexed the first time."""
    count: int = 100
    """Number of images to choose."""
    data: DataWords = ()
    """Images of a run's index, if it has to be made; by default those that the run was trained on."""
    given: OptionalFile = None
    """Images that need not be chosen, such as those labelled already: a list as ssole select writes it."""
    out: FilePath = Path("selected.csv")
    """List to write: path, label (where known) and similarity to the nearest image chosen before."""
    device: Device = "auto"


def select(argv: Sequence[str]) -> int:
    """Choose images that represent all, for labelling, and write a list of them.

    Examples:
      ssole select photos-index --count 500
      ssole select photos-index --count 100 --out photos/to-label.csv
      ssole select photos-index --count 100 --given photos/to-label.csv --out photos/more.csv

    Greedy k-center: each image is the one that is least similar to those chosen before it. The first n of a list are
    what --count n chooses. Written to the folder of the images, the list can be opened as data once it has labels.
    """
    from ssole.search.matches import require_new, saved_ids
    from ssole.search.search import open_index

    args = parse(select, SelectArgs, argv)
    require_new(args.out)
    given = [] if args.given is None else saved_ids(args.given)
    index = open_index(args.index, data=data_spec(args.data), device=args.device)
    found, worst = index.select(args.count, given=given)
    found.save(args.out)
    show(f"{len(found):,} of {len(index):,} images: {args.out}")
    print(
        f"every image has a cosine similarity of at least {worst:.3f} to one of them" + " or those given" * bool(given)
    )
    return 0
