"""From raw image releases to WebDataset shards with an index. Never imports torch.

A module at the top level is a command or is shared: sources/ finds images, images/ checks them, planning/ orders them,
writing/ writes them. Read shard.py first.
"""

import os

from pipeline.core import startup

# Otherwise NumPy's OpenBLAS starts one spinning thread per core in every process. Nothing here multiplies matrices.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
startup.report_in_one_line()
