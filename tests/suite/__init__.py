"""Tests of pipeline.suite, data_prep.test_sets and jobs.suite."""
