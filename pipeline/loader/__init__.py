"""Training batches: the global order, augmentation, worker processes, shared memory.

The order is a pure function of (dataset, seed, epoch, position); what happens on the device (mixup) belongs to
pipeline.train. Read order.py first, then batches.py.
"""
