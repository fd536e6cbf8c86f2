"""asv's benchmarks, on the cases of ``python -m nblstm bench``.

All commits share asv's environment and would share its kernel cache, where each would throw out what the one before
compiled. So every commit has a cache of its own; this file is the first to be imported in a benchmark's process.
"""

import os
from pathlib import Path

if "ASV_COMMIT" in os.environ:
    _caches = Path(os.environ["ASV_CONF_DIR"]) / ".asv" / "kernels"
    os.environ["NUMBA_CACHE_DIR"] = str(_caches / os.environ["ASV_COMMIT"])
