"""The training loop and what surrounds it: set-up, steps, resuming, watching, stopping.

Top layer: puts the other packages together. Read loop.py first.
"""
