"""Writes the recorded weight files beside this script with torch (2.13.0), for tests where torch is not installed.

    python tests/data/make_weight_files.py

The numbers are counted up, so that a test can say what it expects without a second file. The files from before torch
1.6 come out a little different each time: torch names a storage in them by its address.
"""

from __future__ import annotations

import io
import zipfile
from enum import Enum
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


class Mode(Enum):
    """An enum for TorchScript to keep."""

    FAST = 1
    EXACT = 2


@torch.jit.script
class Holder:
    """A class that is no module: its tensors are in no state_dict."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor


class Scripted(torch.nn.Module):
    """A module with every kind of attribute that TorchScript keeps: the state_dict has some of them."""

    __annotations__ = {"optional": torch.Tensor | None}  # torch does not take the text of one

    def __init__(self) -> None:
        super().__init__()
        self.rnn = torch.nn.LSTM(3, 2)
        self.register_buffer("scale", counted(3))
        self.register_buffer("passing", counted(2), persistent=False)
        self.register_buffer("optional", counted(1))
        self.register_buffer("missing", None)
        self.start = torch.nn.Parameter(counted(2, 3).t())
        self.register_parameter("none", None)
        self.short = torch.nn.Parameter(counted(2).bfloat16())
        self.plain = counted(4)
        self.layers = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
        self.same = self.layers
        self.list, self.table, self.pair = [1.0, 2.0], {"a": 1}, (2**40, "text")
        self.mode, self.holder = Mode.EXACT, Holder(counted(2))
        self.z, self.place = 1 + 2j, torch.device("cpu")
        for tensor in (*self.rnn.parameters(), *self.layers.state_dict().values()):
            tensor.data.copy_(counted(*tensor.shape))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Use what TorchScript would leave out otherwise."""
        optional = self.optional
        if optional is not None and self.mode == Mode.EXACT:
            x = x + optional + self.holder.tensor.sum()
        x = x * self.scale + self.passing.sum() + self.plain.sum() + self.list[0] + self.table["a"] + self.pair[0]
        return self.same(self.layers(self.rnn(x)[0][0])) + self.start.sum() + self.short


def write_scripted(path: Path) -> None:
    """Write a module by torch.jit.save, less the members that say where on this machine its source lies."""
    whole = io.BytesIO()
    torch.jit.save(torch.jit.script(Scripted()), whole)
    with zipfile.ZipFile(whole) as archive, zipfile.ZipFile(path, "w") as packed:
        for member in archive.infolist():
            if not member.filename.endswith(".debug_pkl"):
                packed.writestr(member, archive.read(member))


if __name__ == "__main__":
    torch.save(state_dict(), FOLDER / "torch_state_dict.pt")
    torch.save(checkpoint(), FOLDER / "torch_checkpoint.pt")
    for name, value in (("state_dict", state_dict()), ("checkpoint", checkpoint())):
        torch.save(value, FOLDER / f"legacy_{name}.pt", _use_new_zipfile_serialization=False)
    write_scripted(FOLDER / "torchscript.pt")
