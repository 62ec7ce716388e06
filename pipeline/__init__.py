"""The training library, in layers; importing the package itself imports nothing heavy.

A sub-package imports only sub-packages below it (pyproject.toml lists the layers, import-linter holds them). Commands
live in jobs/, dataset preparation in data_prep/. Read pipeline/train/loop.py first: the whole of training is there.
"""
