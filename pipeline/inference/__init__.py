"""Predictions for image files: finding and decoding them, classifying, attention roll-out.

Evaluation of whole datasets belongs to pipeline.evaluation. Read classifier.py first.
"""
