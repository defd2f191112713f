"""Comparison of methods under equal conditions: `ssole compare`.

`compare.py` is the entry. `request.py` says what is compared and `experiment.py` reads it from a file; `images.py`
opens the data, `plan.py` measures the cost, `search.py` draws settings, `trial.py` trains and scores one run,
`runner.py` takes all of them in order; `result.py` and `plots.py` show what came out. `tune.py` chooses settings by a
label-free figure, with the same draws and trials.
"""
