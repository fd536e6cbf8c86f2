"""LSTM networks on the CPU, compiled by Numba, with the weights and the numbers of PyTorch.

>>> import numpy as np, nblstm
>>> lstm = nblstm.LSTM(input_size=4, hidden_size=8, seed=0)
>>> output, (h_n, c_n) = lstm(np.ones((10, 1, 4), np.float32))
>>> output.shape
(10, 1, 8)
"""

import importlib
import os
import threading
from typing import TYPE_CHECKING, Any

from nblstm.sequences import (
    PackedSequence,
    pack_padded_sequence,
    pack_sequence,
    pad_packed_sequence,
    pad_sequence,
    unpack_sequence,
    unpad_sequence,
)
from nblstm.threads import get_num_threads, num_threads, set_num_threads

if TYPE_CHECKING:
    from nblstm import cuda, functional, nopython
    from nblstm.engine.ahead import warmup
    from nblstm.layers.cells import GRUCell, LSTMCell, RNNCell
    from nblstm.layers.gru import GRU
    from nblstm.layers.lstm import LSTM
    from nblstm.layers.rnn import RNN
    from nblstm.weights.files import load, save

__version__ = "0.1.0"

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "GRUCell",
    "LSTMCell",
    "PackedSequence",
    "RNNCell",
    "cuda",
    "functional",
    "get_num_threads",
    "load",
    "nopython",
    "num_threads",
    "pack_padded_sequence",
    "pack_sequence",
    "pad_packed_sequence",
    "pad_sequence",
    "save",
    "set_num_threads",
    "unpack_sequence",
    "unpad_sequence",
    "warmup",
]

# These come with their first use: what computes needs Numba, which takes half a second to import. `nblstm.threads`
# comes at once, so that it sees a fork before the first layer.
_HOMES = {
    "GRU": "layers.gru",
    "GRUCell": "layers.cells",
    "LSTM": "layers.lstm",
    "LSTMCell": "layers.cells",
    "RNN": "layers.rnn",
    "RNNCell": "layers.cells",
    "cuda": "cuda",
    "functional": "functional",
    "load": "weights.files",
    "nopython": "nopython",
    "save": "weights.files",
    "warmup": "engine.ahead",
}


# A child that is forked in the middle of an import would wait for the end of it, which is another thread's, for good.
_importing = threading.RLock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_importing.acquire, after_in_parent=_importing.release, after_in_child=_importing.release
    )


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with _importing:
        home = importlib.import_module(f"{__name__}.{_HOMES[name]}")
    value = globals()[name] = home if _HOMES[name] == name else getattr(home, name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
