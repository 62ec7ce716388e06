"""JPEG bytes to pixels: whole, scaled down, or a region, through libjpeg-turbo; and antialiased resizing of pixels.

Augmentation belongs to pipeline.loader, checking and rewriting of images to data_prep.images. Read jpeg.py first.
"""
