"""Backbones from timm, the projector, and loading what a run has learned."""
