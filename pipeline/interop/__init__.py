"""Models in and out: official .npz, timm, transformers, ONNX, and our own exports.

Other projects' names and layouts stay in here; the rest of the library sees our names only. Read load.py first.
"""
