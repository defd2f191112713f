"""Evaluation of a frozen model: its features, and the metrics computed on them.

`evaluate` holds what `api`, `cli` and `ssole` call. `preprocessing` prepares images for a model, `features` runs it,
`parts` runs it on very many images, `datasets` finds train and test images. `knn`, `linear` and `label_free` are the
metrics, with shared parts in `checks`.
`scoring` computes all metrics of one model or baseline, and `results` holds the figures, their table and their JSON.
Do not change preprocessing, kNN scores and the objective of the probe by a bit: published figures rest on them.
`METRICS` and the fields of `results` are the format of `evaluation.json`. Everything else may change freely.
"""
