"""A finished dataset on disk: its format, index, classes, remote access and shard cache.

The contract between data_prep, which writes it, and training, which reads it. Order and augmentation belong to
pipeline.loader. Read format.py first.
"""
