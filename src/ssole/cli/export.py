"""`ssole export`: a backbone in the format of another library."""

from __future__ import annotations

from dataclasses import dataclass

from ssole.cli.common import OptionalFolder, RunPath, show
from ssole.export.export import export as write
from ssole.export.formats import Format


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write the backbone of a run in the format of another library, checked against the source.

    Examples:
      ssole export runs/mine --to timm
      ssole export runs/mine --to onnx --out backbone-onnx

    The folder holds the weights with their normalisation and a README.md with the code that loads them.
    """

    run: RunPath
    """Run folder, or its backbone.safetensors."""
    to: Format
    """Format: timm, torchvision (weights), onnx, torch-export (programs), hf (transformers' AutoModel)."""
    out: OptionalFolder = None
    """Folder to write. By default, RUN/export/FORMAT."""

    def __call__(self) -> int:
        folder = write(self.run, to=self.to, out=self.out)
        show(f"{folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")
        show(f"how to load it: {folder / 'README.md'}")
        return 0
