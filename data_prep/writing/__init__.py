"""Shards, index and dataset.json, written aside and renamed.

Everything it writes follows the plan; nothing is decided here. Read build_shard.py first.
"""
