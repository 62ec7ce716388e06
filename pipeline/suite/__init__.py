"""Evaluating a model on the test sets that papers report: class subsets, corruptions, results stored with the run.

Reading the downloads belongs to data_prep.test_sets, the table to jobs.suite. Read set_accuracy.py first.
"""
