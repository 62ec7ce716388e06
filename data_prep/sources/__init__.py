"""Read raw releases as they are downloaded: tars, tars of tars, folders, streams, WebDataset tars.

Yields images with their classes, and rejects with reasons; decides nothing about shards. Read inputs.py first.
"""
