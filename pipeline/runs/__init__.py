"""A run folder: its files, owner, records, provenance, and what can be derived from them.

Nothing here trains or talks to MLflow (pipeline.tracking does). Read folder.py first.
"""
