"""`ssole embed`: features of images, written to a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ssole import distributed
from ssole.cli.common import DataWords, Device, FilePath, RunPath, data_spec, run_config, run_data, show


@dataclass(frozen=True, kw_only=True)
class Embed:
    """Write the features of images to a file, with their ids and their labels (if any).

    Examples:
      ssole embed runs/mine --data photos/
      ssole embed runs/mine --data photos/ --out photos.parquet

    Similar images have features with a high cosine similarity. After an interruption, the same command goes on where it
    stopped. For very many images, choose .parquet: memory does not grow with their number.
    """

    run: RunPath
    """Run folder, or its backbone.safetensors."""
    data: DataWords = ()
    """Images, in any form that pretraining takes. By default, the data of the run."""
    out: FilePath = Path("embeddings.npz")
    """File to write: .npz (array, ids, labels, classes) or .parquet (id, embedding, label, class)."""
    device: Device = "auto"

    def __call__(self) -> int:
        from ssole.evaluation.embed_to_file import embed_to_file

        data = data_spec(self.data) or run_data(run_config(self.run), self.run)
        done = embed_to_file(self.run, data, self.out, device=self.device, progress=not distributed.rank())
        if not distributed.rank():
            show(f"{done.images} images, {done.features} features each: {self.out}")
        return 0
