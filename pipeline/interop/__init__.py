"""Importing and exporting models: official .npz, timm, transformers, ONNX, and our own format.

Other projects' names and layouts are used only here; all other packages use ours. Read load.py first.
"""
