"""One image's bytes: is it sound, and what JPEG goes into the dataset.

No tars, no classes, no order. Read prepare.py first.
"""
