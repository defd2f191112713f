"""Search among the features of many images: similar ones, near duplicates, outliers, and a choice to label.

`search` holds what `ssole`'s users and the command line call, and makes the index. `index` is the folder of features
and its reading, and `matches` is what every search returns. `rows` has the algorithms on unit rows, which may lie in a
file that is larger than memory. `query` computes the features of an image to look for, and `sheet` draws results.
`cells` divides very many rows, of which a query then looks at a few; all other searches are exact. The files of an
index folder, with their names, are a format: a change needs a new number in `index.FORMAT`. Everything else may change
freely.
"""
