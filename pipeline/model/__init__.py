"""The Vision Transformer: network, losses, FLOPs, and what happens to weights at another resolution.

No optimizer, no files: other projects' formats belong to pipeline.interop. Read vit.py first.
"""
