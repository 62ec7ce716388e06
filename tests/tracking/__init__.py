"""Tracking, its copy in MLflow, and comparisons."""
