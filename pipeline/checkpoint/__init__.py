"""Checkpoints that know nothing of ranks: their format, reading, and saving without stopping the step.

Reading imports no DeepSpeed; loading into an engine belongs to pipeline.train.resume. Read format.py first.
"""
