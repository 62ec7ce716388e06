"""Which image goes where: key, split, order and shard of each image, before anything is written.

assignment.py is pure; read it first."""
