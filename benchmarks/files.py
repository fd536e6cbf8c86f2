"""Weight files: how long it takes to read them."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

from nblstm import load, save
from nblstm.arrays import Array
from nblstm.commands.benchmark.cases import Case

from .documents import ROOT

_NETWORK = Case(1, 1, 1024, 1024, layers=3)  # of 25 million weights: 100 MB


class Load:
    """A state_dict of 100 MB, which the system still has in memory."""

    params: ClassVar[list[str]] = ["pt", "safetensors", "npz"]
    param_names: ClassVar[list[str]] = ["kind"]
    timeout = 300.0

    def setup_cache(self) -> None:
        """Write the files; asv calls this once, in a folder that all of these benchmarks then run in."""
        parameters = _NETWORK.parameters()
        for kind in self.params:
            path = Path(f"weights.{kind}")
            if kind == "pt":
                path.write_bytes(torch_file(parameters))
            else:
                save(path, parameters)

    def setup(self, kind: str) -> None:
        """Read the file once, so that it is in memory."""
        load(f"weights.{kind}")

    def time_load_100_mb(self, kind: str) -> None:
        """Time reading it."""
        load(f"weights.{kind}")

    def peakmem_load_100_mb(self, kind: str) -> None:
        """Take the process's peak memory in reading it."""
        load(f"weights.{kind}")


def torch_file(parameters: dict[str, Array]) -> bytes:
    """Return a file that torch reads as one of its own, made without torch, as the tests make theirs."""
    by_hand = SimpleNamespace(**runpy.run_path(str(ROOT / "tests" / "torch_pickles.py")))
    program, members = b"}(", {"version": b"3\n", "byteorder": sys.byteorder.encode()}
    for key, (name, array) in enumerate(parameters.items()):
        strides = tuple(stride // array.itemsize for stride in array.strides)
        storage = by_hand.storage(key=str(key), count=array.size)
        program += by_hand.value(name) + by_hand.tensor(storage, 0, array.shape, strides)
        members[f"data/{key}"] = array.tobytes()
    return bytes(by_hand.archive(program + b"u", members).getvalue())
