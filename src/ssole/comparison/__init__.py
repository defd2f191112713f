"""Comparison of methods under equal conditions: `ssole compare`.

`compare.py` is the entry, and reads the files of experiments. `request.py` says what is compared; `images.py` opens
the data, `plan.py` draws settings and measures the cost, `trial.py` trains and scores one run, `runner.py` takes all
of them in order; `result.py` and `plots.py` show the results. `tune.py` chooses settings by a label-free figure, with
the same draws and trials. `ssole` and the command line call it. The files in a comparison's folder are a format, and
draws and the order of runs must stay as they are; everything else may change freely.
"""
