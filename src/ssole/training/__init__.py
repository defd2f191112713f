"""Training: from images to the weights of a backbone.

`step.py` is the one training step, which the doctor and the benchmarks take too, `watch.py` looks at its losses and
`graph.py` replays it on a GPU; `loop.py` runs it, with stopping and resuming; `guardian.py` and `replay.py` are for
steps that fail; `feed.py` brings batches in a planned order; `optim.py` has optimizers and schedule; `monitor.py` shows
and logs; `run.py`, `checkpoint.py` and `saving.py` are the run folder. `ssole.api` calls `loop.train`. The files of a
run folder and their keys are a format, and every draw is a function of (seed, epoch, image): changing either breaks
resuming. Evaluators come in as callables; this room never imports `evaluation`.
"""
