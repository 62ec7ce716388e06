"""The configuration of a run: its fields and their facts, the recipes, the learning-rate schedule, published figures.

Pure data and arithmetic: no torch, no files of a run. Read schema.py first, then recipes.py.
"""
