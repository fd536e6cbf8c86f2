"""What a run of training is made of, as one file of named arrays: .npz or .safetensors, whole or not there at all.

    model.*                the parameters, for `RecurrentLanguageModel.from_state_dict(load(path), "model.")`
    optimizer.N.*          the moments of parameter N, under torch's names
    state.0, state.1       the recurrent states after the last step
    losses                 of all steps so far
    run                    the rest as JSON in UTF-8: options of the optimiser, seeds

A batch and a dropout mask are functions of a seed and the step, so there is no random state besides.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from nblstm.arrays import Array
from nblstm.errors import message
from nblstm.weights.files import load, save

_FORMAT = 1


class Checkpoint(NamedTuple):
    """A run after some of its steps; their number is that of the losses."""

    model: dict[str, Array]
    optimizer: dict[str, Any]  # as its state_dict() gives it
    state: tuple[Array, ...]  # none before the first step
    losses: list[float]
    dropout_seed: int
    next_batch: int  # a check sum of the next batch: the text, its partition and their seed

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the file; an older one stays as it was until this one is whole."""
        run = {
            "format": _FORMAT,
            "dropout_seed": self.dropout_seed,
            "next_batch": self.next_batch,
            "param_groups": self.optimizer["param_groups"],
        }
        arrays = {f"model.{name}": array for name, array in self.model.items()}
        for number, moments in self.optimizer["state"].items():
            arrays |= {f"optimizer.{number}.{name}": array for name, array in moments.items()}
        arrays |= {f"state.{number}": array for number, array in enumerate(self.state)}
        arrays["losses"] = np.array(self.losses, np.float64)
        arrays["run"] = np.frombuffer(json.dumps(run).encode(), np.uint8)
        save(path, arrays)


def read_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Return what `Checkpoint.write` wrote. ValueError for another file, and as `nblstm.load` does."""
    found = load(path)
    run = _run_of(path, found)
    moments: dict[int, dict[str, Array]] = {}
    for name, array in _under(found, "optimizer.").items():
        number, _, moment = name.partition(".")
        moments.setdefault(int(number), {})[moment] = array
    return Checkpoint(
        _under(found, "model."),
        {"state": moments, "param_groups": run["param_groups"]},
        tuple(_under(found, "state.").values()),
        found["losses"].tolist(),
        run["dropout_seed"],
        run["next_batch"],
    )


def _run_of(path: str | os.PathLike[str], found: Any) -> dict[str, Any]:
    expected = f"a checkpoint that Trainer.save wrote, of format {_FORMAT}"
    if not isinstance(found, Mapping) or not {"run", "losses"} <= set(found):
        raise ValueError(message(os.fspath(path), expected, "a file of other arrays"))
    try:
        run: dict[str, Any] = json.loads(found["run"].tobytes())
        kind = run["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(message(os.fspath(path), expected, "something else under 'run'")) from error
    if kind != _FORMAT:
        raise ValueError(message(os.fspath(path), expected, f"format {kind}"))
    return run


def _under(arrays: Mapping[str, Array], prefix: str) -> dict[str, Array]:
    """Return the arrays whose names begin with `prefix`, without it, in the order of their names."""
    return {name[len(prefix) :]: arrays[name] for name in sorted(arrays) if name.startswith(prefix)}
