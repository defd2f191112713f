"""Training: from images to the weights of a backbone.

`step.py` is the one training step, which the doctor and the benchmarks take too: `embedder.py` has its encoder,
`optim.py` its optimizer, `watch.py` looks at its losses, `graph.py` replays it on a GPU, and `dry_run.py` measures it.
`loop.py` runs it: `feed.py` brings batches in a planned order, `pace.py` has length and schedule, `monitor.py` and
`screen.py` log and show, `stopping.py` answers signals, `guardian.py` and `replay.py` are for steps that fail. Before
it, `settings.py` measures, `initial.py` loads weights, and `needs.py` counts memory. `run.py`, `images.py`,
`checkpoint.py` and `saving.py` are the run folder, and `packing.py` makes one copy of many tensors. `ssole.api` calls
`loop.train`. The files of a run folder and their keys are a format, and every draw is a function of (seed, epoch,
image): changing either breaks resuming. Evaluators come in as callables: `evaluation` is never imported here.
"""
