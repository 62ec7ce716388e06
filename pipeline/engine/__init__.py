"""The only package that uses DeepSpeed: its configuration, the optimizer, one training step's update.

The loop belongs to pipeline.train, files to pipeline.checkpoint. Read deepspeed_engine.py first.
"""
