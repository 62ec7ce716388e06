"""A model on the test sets that the field reports: class subsets, corruptions, results that stay with the run.

Reading the downloads belongs to data_prep.test_sets, the table to jobs.suite. Read set_accuracy.py first.
"""
