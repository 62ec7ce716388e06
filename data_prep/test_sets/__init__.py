"""The test sets that papers report beside ImageNet's own, read as they were downloaded: tar, zip or folder.

Names, contents and image locations of each set. Nothing here runs a model (jobs.suite does) or writes a dataset.
Read catalogue.py first.
"""
