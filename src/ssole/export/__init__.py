"""Export of trained backbones to the formats of other libraries.

`export` is what `ssole.export` and the command line call: it writes a folder, loads it again, compares it with the
source and adds a model card. `formats` writes the formats. Names of formats, and of files in the folders, may not
change. Everything else may.
"""

from __future__ import annotations

from ssole.models.timm_registry import register_with_timm

__all__ = ["register_with_timm"]
