"""What a process pays before it has its first result."""

from __future__ import annotations

import subprocess
import sys

FIRST_CALL = "import numpy, nblstm; nblstm.LSTM(64, 64, seed=0)(numpy.zeros((10, 1, 64), numpy.float32))"


class Start:
    """Whole statements in new processes."""

    timeout = 300.0

    def setup(self) -> None:
        """Fill the kernel cache."""
        subprocess.run([sys.executable, "-c", FIRST_CALL], check=True)

    def timeraw_import(self) -> str:
        """Time the import."""
        return "import nblstm"

    def timeraw_import_and_first_call(self) -> str:
        """Time the import and a call with kernels from the cache."""
        return FIRST_CALL
