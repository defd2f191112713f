"""Report: one page that shows whether training worked, made from run folders and their images.

`report` is what `ssole.report` and the command line call. `record` reads a run folder, `sample` opens some of its
images and computes their features before and after training, and `verdict` assesses both. Each part of the page has a
file: `charts`, `neighbours` (and what kNN confuses), `points` (the map). `page` encodes images and fills the template
`page.html.j2` with `page.css` and `page.js`. Everything that comes from outside (names of runs, files and classes) is
escaped there. `live` serves the page while runs train. Texts and looks may change freely.
"""
