"""MLflow: syncing a run folder's records, the model registry, the pyfunc model.

Training never waits for a server: it writes records (pipeline.runs.records), and a process of its own sends them.
Read tracker.py first, then sync.py.
"""
