"""Record what torch.nn gives for some cases of the registry: tests/data/golden.npz.

Run it from the repository's root with PyTorch installed::

    python tests/data/make_golden.py

The file holds weights and inputs too, as float32, because NumPy may change its random streams; results come from torch
in float64. Arrays are named case/array, ``GRU: plain/output``; ``hx`` and ``lengths`` are in use in every case.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import cases

NAMES = [
    "LSTM: plain",
    "LSTM: no bias",
    "LSTM: two layers",
    "LSTM: both directions",
    "LSTM: projection",
    "LSTM: everything",
    "GRU: plain",
    "GRU: everything",
    "RNN: everything",
    "RNN relu: plain",
]


def main() -> None:
    """Write the file beside this script."""
    torch.set_num_threads(1)
    recorded: dict[str, np.ndarray] = {}
    for case in cases.CASES:
        if case.name not in NAMES:
            continue
        layer, (x, hx) = case.layer(np.float64), case.inputs(np.float64)
        lengths = np.random.default_rng(3).integers(1, case.steps + 1, case.batch)
        output, *last = cases.flat(cases.torch_result(torch, layer, x, hx, lengths))
        inputs = layer.state_dict() | dict(zip(("x", "h_0", "c_0"), (x, *cases.as_tuple(hx)), strict=False))
        results = {"lengths": lengths, "output": output} | dict(zip(("h_n", "c_n"), last, strict=False))
        recorded |= {f"{case.name}/{name}": array.astype(np.float32) for name, array in inputs.items()}
        recorded |= {f"{case.name}/{name}": array for name, array in results.items()}
    np.savez_compressed(Path(__file__).with_name("golden.npz"), **recorded)


if __name__ == "__main__":
    main()
