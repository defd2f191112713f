"""Judging a representation: frozen features, and what simple classifiers and label-free measures make of them."""
