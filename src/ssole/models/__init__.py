"""Networks: making them from a config, making them fast on CPUs, and loading trained ones.

`backbone.py` makes the encoder (timm backbone, stem, projector); `cpu.py` has layers that train faster on CPUs;
`compile.py` decides on and does `torch.compile`; `load.py` writes and reads the description of a weight file.
Training, evaluation and the doctor call it. The order of random draws in `create_encoder` decides initial weights to
the bit, and the names of parameters and the header of weight files are a format: keep them. The rest may change.
"""
