"""Losses on embeddings (B images, V views, D dimensions), and the nuclear norm.

- `ssole`: SSOLELoss and its ablations. `ole`: OLELoss, the ancestor.
- `simclr`, `barlow_twins`, `vicreg`, `frossl`, `mmcr`, `w_mse`, `lejepa`, `supervised`: other methods, to compare with.
  `base`: what they share, and what training needs from any loss. A new loss is one more file like these, and a line in
  `LOSSES`.
- `nuclear`: the nuclear norm and its gradient, one autograd function. `kernels`: Gram products; `roots`:
  inverse roots of Gram matrices; `device`: the same norms on accelerators, by few kernels.

Called by `training` and by users. Results must stay the same to the last bit on the CPU, so the order of operations in
`nuclear`, `kernels` and `roots` may change only on purpose. Formulas and their sources are in docs/design.md and
docs/losses.md, which also has the published settings of each method.
"""

from collections.abc import Callable

from torch import nn

from ssole.losses.barlow_twins import BarlowTwinsLoss
from ssole.losses.frossl import FroSSLLoss
from ssole.losses.lejepa import LeJEPALoss
from ssole.losses.mmcr import MMCRLoss
from ssole.losses.nuclear import nuclear_norm
from ssole.losses.ole import OLELoss
from ssole.losses.simclr import SimCLRLoss
from ssole.losses.ssole import SSOLELoss, SSOLETerms
from ssole.losses.supervised import SupervisedLoss
from ssole.losses.vicreg import VICRegLoss
from ssole.losses.w_mse import WMSELoss

# Losses by the name that a recipe gives them.
LOSSES: dict[str, Callable[..., nn.Module]] = {
    "ssole": SSOLELoss,
    "ole": OLELoss,
    "simclr": SimCLRLoss,
    "barlow-twins": BarlowTwinsLoss,
    "vicreg": VICRegLoss,
    "frossl": FroSSLLoss,
    "mmcr": MMCRLoss,
    "w-mse": WMSELoss,
    "lejepa": LeJEPALoss,
    "supervised": SupervisedLoss,
}

__all__ = [
    "LOSSES",
    "BarlowTwinsLoss",
    "FroSSLLoss",
    "LeJEPALoss",
    "MMCRLoss",
    "OLELoss",
    "SSOLELoss",
    "SSOLETerms",
    "SimCLRLoss",
    "SupervisedLoss",
    "VICRegLoss",
    "WMSELoss",
    "nuclear_norm",
]
