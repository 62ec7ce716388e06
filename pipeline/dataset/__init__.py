"""A finished dataset on disk: its format, index, classes, remote access and shard cache.

This is the contract between data_prep, which writes datasets, and training, which reads them. Sample order and
augmentation belong to pipeline.loader. Read format.py first.
"""
