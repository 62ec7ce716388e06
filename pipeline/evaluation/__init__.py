"""Evaluation: accuracy, confusion between classes, k-NN and linear probes of features.

Stored results belong to pipeline.runs.evaluations, comparing runs to pipeline.compare. Read accuracy.py first.
"""
