"""Plan a dataset: each image's key, split, order and shard, before anything is written.

Finding images belongs to sources/, writing them to writing/. Read assignment.py first: it is pure.
"""
