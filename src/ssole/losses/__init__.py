"""Losses on embeddings, and the nuclear norm they are made of."""

from ssole.losses.nuclear import nuclear_norm
from ssole.losses.ole import OLELoss
from ssole.losses.ssole import SSOLELoss, SSOLETerms

__all__ = ["OLELoss", "SSOLELoss", "SSOLETerms", "nuclear_norm"]
