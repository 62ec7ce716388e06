"""What the fork server of tests/helpers/ranks.py imports once: everything that a rank needs and that takes time."""

import torch

import pipeline.train.loop  # noqa: F401  (with DeepSpeed)

# The first optimizer of a process imports more of torch
torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])
assert torch.get_num_threads() == 1, "a pool of threads doesn't survive a fork"
