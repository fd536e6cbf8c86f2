"""Mixed shapes from four threads for minutes, and what memory the process keeps: ``python -m benchmarks.soak``.

Every call has sizes of its own, of layers that are built anew now and then, so that whatever is kept for each size or
layer would show as memory that grows. Twenty times the threads end, and free memory goes back to the system. It fails
where more is left in the last fifth of the time than 1.02 times what was left in the second.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

import numpy as np

import nblstm

KINDS = nblstm.LSTM, nblstm.GRU, nblstm.RNN
CALLS_OF_A_LAYER = 50
ROUNDS, THREADS = 20, 4
MOST = 1.02


def resident() -> float:
    """Return the memory of this process that is resident, in MiB (Linux)."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def kept() -> float:
    """Return the same without what the process has freed and the C library holds for later."""
    gc.collect()
    if (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)
    return resident()


def serve(seed: int, ends: float, calls: list[int]) -> None:
    """Call layers of random sizes, forward, step by step and back, until `ends`."""
    rng = np.random.default_rng(seed)
    while time.monotonic() < ends:
        inputs, units, layers = (int(rng.integers(1, most)) for most in (96, 160, 3))
        layer = KINDS[rng.integers(3)](inputs, units, layers, bidirectional=bool(rng.integers(2)), seed=seed)
        for _ in range(CALLS_OF_A_LAYER):
            steps, rows = int(rng.integers(1, 60)), int(rng.integers(1, 24))
            x = rng.standard_normal((steps, rows, inputs), dtype=np.float32)
            (output, _), backward = layer.vjp(x, lengths=rng.integers(1, steps + 1, rows))
            if rng.integers(4) == 0:
                backward(output)
            if not layer.bidirectional:
                stream = layer.stream(rows)
                for step in x[:5]:
                    stream(step)
            layer(x)
            calls[0] += 1


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the memory twenty times; exit with 1 if it grew."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--minutes", type=float, default=10.0)
    options = parser.parse_args(arguments)
    begins, calls, left = time.monotonic(), [0], []
    for number in range(ROUNDS):
        ends = begins + 60 * options.minutes * (number + 1) / ROUNDS
        seeds = range(number * THREADS, (number + 1) * THREADS)
        threads = [threading.Thread(target=serve, args=(seed, ends, calls)) for seed in seeds]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        busy = resident()
        left.append(kept())
        text = f"{left[-1]:7.1f} MiB kept, {busy:7.1f} before that  {calls[0]} calls"
        print(f"{time.monotonic() - begins:6.0f} s  {text}", flush=True)
    fifth = ROUNDS // 5
    growth = mean(left[-fifth:]) / mean(left[fifth : 2 * fifth])
    print(f"the last fifth beside the second: {growth:.3f}")
    sys.exit(growth > MOST)


if __name__ == "__main__":
    main()
