"""Views: random, augmented, normalised crops of decoded images; :func:`make_views` makes all views of a batch.

`params` draws the parameters of each view. `geometry` crops, resizes, flips and turns. `photometric` changes colours,
blurs and normalises. `augment` puts them together in blocks that bound the memory; on an accelerator, `device` does.
`picture` draws the result.
Called by training, the doctor and the commands `views` and `doctor`. How views are computed may be changed freely, to
within rounding. The draws in `params` are a format: another number or order of draws changes every run.
"""

from __future__ import annotations

from ssole.views.augment import make_views

__all__ = ["make_views"]
