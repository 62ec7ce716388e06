"""Runs side by side: reading them, rows and columns, tables, plots, the HTML page.

Reads run folders and MLflow, never changes a run. Read rows.py first.
"""
