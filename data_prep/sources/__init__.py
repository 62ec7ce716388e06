"""Raw releases as they are downloaded: tars, tars of tars, folders, streams, WebDataset tars.

Yields images and rejects with their classes; decides nothing about shards. Read inputs.py first.
"""
