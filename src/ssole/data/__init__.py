"""Data: from a folder, file, pattern, name, URL, array or object to batches of decoded images.

sources     `open_source`, from data as users give them to a `Source`, the class that base defines
describe    texts that name data, for configs and run folders
folder, tars, parquet, arrays, objects, digits_m     one kind of source each; base has a part of a source
labels      labels as numbers, and those of two sources in one numbering
storage, remote     local files and files behind URLs; how the latter are read
decode, tiff, cache     pixels from bytes; decoded images on disk
store, reader     `ImageStore`, images by index; what its threads do
thumbnail     images and pictures of them, for people

`ssole.api`, the doctor and the evaluation call `open_source` and `ImageStore`. Never change ids, `ids_fingerprint`,
`content_digest`, the order of images, decoded pixels and digits-m, because existing runs rely on them. Everything else
may change freely; caches and tar indices are built again when their version is raised.
"""
