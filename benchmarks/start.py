"""What a process pays before it has its first result; ``python -m benchmarks.start`` prints it beside PyTorch."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from statistics import median

FIRST_CALL = "import numpy, nblstm; nblstm.LSTM(64, 64, seed=0)(numpy.zeros((10, 1, 64), numpy.float32))"
OF_TORCH = "import torch; torch.nn.LSTM(64, 64)(torch.zeros(10, 1, 64))"
ROUNDS = 5


class Start:
    """Whole statements in new processes."""

    timeout = 300.0

    def setup(self) -> None:
        """Fill the kernel cache."""
        subprocess.run([sys.executable, "-c", FIRST_CALL], check=True)

    def timeraw_import(self) -> str:
        """Time the import."""
        return "import nblstm"

    def timeraw_import_of_a_layer(self) -> str:
        """Time the import of a layer, with which Numba comes."""
        return "from nblstm import LSTM"

    def timeraw_import_and_first_call(self) -> str:
        """Time the import and a call with kernels from the cache."""
        return FIRST_CALL


def seconds(code: str, cache: str) -> float:
    """Return how long a new process takes for this code, with kernels cached in this folder."""
    # Python's own cache of modules counts as filled too, whatever the environment says.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, env={**environment, "NUMBA_CACHE_DIR": cache})
    return time.perf_counter() - begin


def main() -> None:
    """Print the medians of a few rounds, in each of which all take turns."""
    several = {
        "python": "pass",
        "import numba, numpy": "import numba, numpy",
        "import nblstm": "import nblstm",
        "from nblstm import LSTM": "from nblstm import LSTM",
        "import and first call, cache filled": FIRST_CALL,
    }
    if importlib.util.find_spec("torch") is not None:
        several |= {"import torch": "import torch", "import torch and first call": OF_TORCH}
    times: dict[str, list[float]] = {name: [] for name in ("import and first call, cache empty", *several)}
    for _ in range(ROUNDS):
        with tempfile.TemporaryDirectory() as cache:
            times["import and first call, cache empty"].append(seconds(FIRST_CALL, cache))
            for name, code in several.items():
                times[name].append(seconds(code, cache))
    for name, found in times.items():
        print(f"{name:36} {median(found):6.2f} s  {min(found):6.2f} to {max(found):.2f}")


if __name__ == "__main__":
    main()
