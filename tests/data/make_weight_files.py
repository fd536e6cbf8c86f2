"""Writes the recorded weight files beside this script with torch (2.13.0), for tests where torch is not installed.

    python tests/data/make_weight_files.py

The numbers are counted up, so that a test can say what it expects without a second file.
"""

from __future__ import annotations

from pathlib import Path

import torch

FOLDER = Path(__file__).parent
DTYPES = """
    float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 uint16 uint32 uint64 complex64 complex128 bool
"""


def counted(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Return 0, 1, 2, ... in this shape."""
    return torch.arange(torch.Size(shape).numel()).reshape(shape).to(dtype)


def state_dict() -> dict[str, torch.Tensor]:
    """Return the state_dict of a model with an LSTM, as users export it."""
    lstm = torch.nn.LSTM(3, 2, bidirectional=True, proj_size=1)
    state = torch.nn.ModuleDict({"rnn": lstm, "head": torch.nn.Linear(2, 1)}).state_dict()
    for tensor in state.values():
        tensor.copy_(counted(*tensor.shape))
    return state


def checkpoint() -> dict[str, object]:
    """Return what surrounds a state_dict: plain values, parameters, every dtype, and views that share a storage."""
    shared = counted(24)
    return {
        "epoch": 7,
        "loss": 0.5,
        "flags": [True, False, None],
        "large": 2**70,
        "nested": {"lr": 1e-3, "betas": (0.9, 0.999), 3: "three"},
        "size": torch.Size([2, 3]),
        "dtype": torch.float16,
        "device": torch.device("cuda:0"),
        "parameter": torch.nn.Parameter(counted(2, 3)),
        "scalar": torch.tensor(3.0),
        "empty": torch.zeros(0, 4),
        "first": shared[:12].reshape(4, 3),
        "second": shared[12:].reshape(3, 4).t(),
        "expanded": torch.tensor([1.0, 2.0]).expand(3, 2),
        "dtypes": {name: counted(4, dtype=getattr(torch, name)) for name in DTYPES.split()},
    }


if __name__ == "__main__":
    torch.save(state_dict(), FOLDER / "torch_state_dict.pt")
    torch.save(checkpoint(), FOLDER / "torch_checkpoint.pt")
