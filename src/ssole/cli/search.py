"""`ssole search`: images that are similar to one, near duplicates, outliers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from ssole.cli.common import DataWords, Device, FilePath, data_spec, picture_format, require_apart, show
from ssole.config import ConfigError
from ssole.data.describe import why_not_reopened
from ssole.errors import printable
from ssole.files import write_atomically
from ssole.progress import output_console
from ssole.search.rows import CROWD, NEAR_DUPLICATE

if TYPE_CHECKING:
    from ssole.search.index import Index
    from ssole.search.matches import Matches

IndexPath = Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="INDEX_OR_RUN")]


@dataclass(frozen=True, kw_only=True)
class Search:
    """Find images that are similar to one, near duplicates, or outliers: a table and a picture.

    Examples:
      ssole search photos-index one.jpg -k 20
      ssole search runs/mine cat/001.png
      ssole search photos-index --duplicates --least 0.95
      ssole search photos-index --outliers -k 50

    Similarity is the cosine of features, 1 for equal ones. The search is exact; in an index with
    cells, only with --exact.
    """

    index: IndexPath
    """Folder that ssole index wrote; or a run, whose images are indexed the first time."""
    query: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="[QUERY]", help_behavior_hint="")] = None
    """Image to look for: a file, or the id of an image in the index."""
    k: Annotated[int | None, tyro.conf.arg(aliases=("-k",), metavar="INT", help_behavior_hint="")] = None
    """Number of images to find; by default 20, or all of a smaller index."""
    duplicates: bool = False
    """Find groups of near duplicates instead: images that the model can hardly tell apart."""
    least: float = NEAR_DUPLICATE
    """With --duplicates: lowest cosine similarity of duplicates."""
    outliers: bool = False
    """Find images that are similar to no other instead."""
    exact: bool = False
    """Look at all images, also in an index with cells."""
    out: FilePath = Path("search.png")
    """Picture of the images found: .png, .jpg or another format that Pillow writes."""
    data: DataWords = ()
    """Where the images are now. By default, where they were when the index was made."""
    model: Annotated[str | None, tyro.conf.arg(metavar="MODEL", help_behavior_hint="")] = None
    """The model that made the index, if it was not a run: timm:NAME, torchvision:NAME, timm:NAME=FILE."""
    device: Device = "auto"

    def __call__(self) -> int:
        from ssole.search.search import open_index

        if (self.query is not None) + self.duplicates + self.outliers != 1:
            raise ConfigError("give one of: an image to look for (QUERY), --duplicates, --outliers")
        file_format = picture_format(self.out)
        require_apart(self.out, [*self.data, *([] if self.query is None else [self.query])])
        index = open_index(self.index, data=data_spec(self.data), device=self.device)
        require_apart(self.out, index.data)
        # an image of the index is not compared with itself
        k = min(20, max(1, len(index) - (self.query is not None))) if self.k is None else self.k
        if self.duplicates:
            groups = index.duplicates(self.least)
            _print_groups(groups, index)
        elif self.outliers:
            groups = [index.outliers(k)]
            _print_table(groups[0], f"mean similarity to {min(CROWD, len(index) - 1)} neighbours")
        else:
            groups = [index.search(self.query, k, model=self.model, device=self.device, exact=self.exact)]
            _print_table(groups[0], "similarity")
        if groups:
            _draw(self, index, groups, file_format)
        return 0


def _print_table(found: Matches, title: str) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table("", title, "image", box=None, pad_edge=False)
    has_labels = any(found.labels)
    if has_labels:
        table.add_column("label")
    rows = zip(found.ids, found.similarity.tolist(), found.labels, strict=True)
    for rank, (name, value, label) in enumerate(rows, start=1):
        cells = [Text(printable(name), overflow="fold"), *([Text(printable(label))] if has_labels else [])]
        table.add_row(str(rank), f"{value:.4f}", *cells)
    output_console().print(table)


def _print_groups(groups: list[Matches], index: Index) -> None:
    copies = sum(len(group) - 1 for group in groups)
    show(f"{copies:,} of {len(index):,} images are near duplicates, in {len(groups):,} groups")
    if 2 * copies > len(index):
        print("the model finds most images this similar: raise --least to see those that are more alike")
    for group in groups:
        show(f"\n{group.ids[0]}")
        for name, value in zip(group.ids[1:], group.similarity[1:].tolist(), strict=True):
            show(f"  {value:.4f}  {name}")


def _draw(args: Search, index: Index, groups: list[Matches], file_format: str) -> None:
    """Draw the picture, or say why there is none. The images may be gone: the table does not need them."""
    from ssole.search.sheet import contact_sheet

    given = data_spec(args.data)
    data: Any = index.data if given is None else given
    if given is None and (reason := why_not_reopened(data)) is not None:
        show(f"no picture: the index is of {reason}; --data says where the images are")
        return
    try:
        sheet, missing = contact_sheet(groups, data, query=args.query, channels=index.channels)
    except ValueError as error:
        show(f"no picture: {error} (--data says where the images are)")
        return
    write_atomically(args.out, lambda path: sheet.save(path, format=file_format))
    show(f"picture: {args.out}")
    if missing:
        show(f"{len(missing)} images are gone or cannot be read, such as {missing[0]}: they are grey")
