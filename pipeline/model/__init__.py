"""The Vision Transformer: network, first weights, losses, FLOPs, and the transfer of weights to another resolution.

No optimizer, no files: other projects' formats belong to pipeline.interop. Read vit.py first.
"""
