"""Data: from a folder, file, pattern, name, URL, array or object to batches of decoded images.

sources     opens what a user gives; base has `Source`, the class of everything it returns
folder, tars, parquet, arrays, objects, digits_m     one kind of source each
storage     reads files of this machine and behind URLs
decode, cache, store     pixels from bytes; decoded images on disk; `ImageStore`, images by index

`ssole.api`, the doctor and the evaluation call `open_source` and `ImageStore`. Part of old run folders, and so never to
change: ids, `ids_fingerprint`, the order of images, decoded pixels, digits-m. Everything else may change freely; caches
and tar indices are built again when their version is raised.
"""
