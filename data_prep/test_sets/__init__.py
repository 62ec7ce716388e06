"""The test sets that the field reports beside ImageNet's own, read as they were downloaded: tar, zip or folder.

What a set is called and holds, and where its images are. Nothing here runs a model (jobs.suite does) or writes a
dataset. Read catalogue.py first.
"""
