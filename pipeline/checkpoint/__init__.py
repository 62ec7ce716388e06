"""Checkpoints that don't depend on the number of ranks: format, reading, and saving in the background.

Reading imports no DeepSpeed; loading into an engine belongs to pipeline.train.resume. Read format.py first.
"""
