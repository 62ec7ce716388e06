"""Which image goes where: key, split, order and shard of each image, before anything is written.

Sources and bytes belong to sources/ and writing/. Read assignment.py first: it is pure.
"""
