"""From raw image releases to WebDataset shards. Never imports torch."""

import os

# NumPy's OpenBLAS starts a thread a core in every process, which spin for a while. Nothing here multiplies matrices.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
