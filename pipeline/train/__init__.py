"""The training loop and its parts: set-up, steps, resuming, monitoring, stopping.

The top layer, which combines the other packages. Read loop.py first.
"""
