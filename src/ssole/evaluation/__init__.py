"""Evaluation of a frozen model: its features, and the metrics computed on them.

`evaluate` and `embed` hold what `cli` and `ssole` call; `models` opens the models they are given. `preprocessing`
prepares images for a model, `features` runs it, also on a share of the images in each of many processes,
`embed_to_file` runs it on very many images, `datasets` finds train and test images.
`knn`, `linear`, `sgd_probe`, `few_shot`, `clustering`, `retrieval` and `label_free` are algorithms on features, with
shared parts in `checks` and `accuracy`; `attentive` needs feature maps, `fine_tune` trains the network. `corruptions`
damages images, with `corruption_filters`. `protocols` lists what can be measured, each a function from a `case`, which
is one model or baseline with its features. `results` holds the figures, their table and their JSON, and `verdict` puts
label-free figures into words. `online` measures while training, `transfer` on several data sets.
Do not change preprocessing, kNN scores and the objective of the probe by a bit: published figures rest on them.
`METRICS` and the fields of `results` are the format of `evaluation.json`. Everything else may change freely.
"""
