"""Write shards, index and dataset.json to temporary files and rename them.

Everything follows the plan; nothing is decided here. Read build_shard.py first.
"""
