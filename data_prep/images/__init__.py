"""Process one image's bytes: check that it is sound, and make the JPEG that goes into the dataset.

No tars, no classes, no order. Read prepare.py first.
"""
