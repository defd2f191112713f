"""Losses on embeddings (B images, V views, D dimensions), and the nuclear norm.

- `ssole`: SSOLELoss and its ablations. `ole`: OLELoss, the ancestor. A new loss is one more file like these.
- `nuclear`: the nuclear norm and its gradient, one autograd function. `kernels`: Gram products and inverse roots.
- `checks`: errors for bad embeddings.

Called by `training` and by users. Results must stay the same to the last bit on the CPU, so the order of operations in
`nuclear` and `kernels` may change only on purpose. Formulas and their sources are in docs/design.md.
"""

from ssole.losses.nuclear import nuclear_norm
from ssole.losses.ole import OLELoss
from ssole.losses.ssole import SSOLELoss, SSOLETerms

__all__ = ["OLELoss", "SSOLELoss", "SSOLETerms", "nuclear_norm"]
