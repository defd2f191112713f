"""Networks: making them from a config, making them fast on CPUs, and loading trained ones.

`backbone.py` makes the encoder (timm backbone, stem, projector); `cpu.py` has layers that train faster on CPUs;
`compile.py` compiles the encoder where that pays; `load.py` writes and reads the description of a weight file;
`weights_file.py` reads files of other programs; `timm_registry.py` makes small-image ResNets known to timm.
Training, evaluation and the doctor call this package. Keep the order of random draws in `create_encoder`, which decides
initial weights to the bit, and the names of parameters and the header of weight files, which are a format. The rest may
change.
"""
