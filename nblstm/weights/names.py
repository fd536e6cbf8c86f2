"""Finds recurrent layers among named arrays, and reads their sizes off the shapes.

The names are torch's: ``weight_ih_l0``, ``weight_hh_l0``, ``bias_ih_l0``, ``bias_hh_l0`` and ``weight_hr_l0`` for each
layer, with ``_reverse`` for the other direction; ``weight_ih``, ``weight_hh``, ``bias_ih``, ``bias_hh`` for a cell.
In letters: G gates (4 of an LSTM), I inputs, H hidden units, P units after the projection, D directions.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nblstm.arrays import Array, as_array, as_mapping
from nblstm.errors import message

Shape = tuple[int, ...]

_LAYER_NAME = re.compile(
    r"(?P<prefix>.*?)(?P<name>(?:weight_ih|weight_hh|bias_ih|bias_hh|weight_hr)_l(?:0|[1-9][0-9]{0,3})(?:_reverse)?)",
    re.DOTALL,
)
_CELL_NAME = re.compile(r"(?P<prefix>.*?)(?P<name>weight_ih|weight_hh|bias_ih|bias_hh)", re.DOTALL)
_KINDS = {4: "LSTM", 3: "GRU", 1: "RNN"}


@dataclass(frozen=True)
class RecurrentSpec:
    """A recurrent layer found among named arrays.

    `parameters` has the arrays under torch's own names (without `prefix`) and in torch's order; the other fields are
    the arguments with which such a layer is made.
    """

    prefix: str
    input_size: int
    hidden_size: int
    num_layers: int
    bias: bool
    bidirectional: bool
    proj_size: int
    parameters: dict[str, Array]


@dataclass(frozen=True)
class CellSpec:
    """A recurrent cell found among named arrays; the fields are those of `RecurrentSpec`."""

    prefix: str
    input_size: int
    hidden_size: int
    bias: bool
    parameters: dict[str, Array]


def find_recurrent_layer(mapping: Mapping[str, Any], prefix: str = "", *, gates: int = 4) -> RecurrentSpec:
    """Return the recurrent layer whose names begin with `prefix`, its sizes read off the shapes.

    With names directly after the prefix (a dot between them may be left out) that layer is taken; otherwise the one
    layer anywhere under the prefix. Where there are several, the one of `gates` gates.

    Parameters
    ----------
    mapping : mapping of str to array
        A state_dict, of a layer or of a whole model.
    prefix : str
        What stands before ``weight_ih_l0`` in the names, or the beginning of it.
    gates : int
        4 for an LSTM, 3 for a GRU, 1 for a plain RNN.

    Raises
    ------
    ValueError
        There is no such layer, or more than one (their prefixes are listed), or an array of it is missing or has
        another shape than the others ask for.
    TypeError
        `mapping` is no mapping, `prefix` no str, or a value under such a name not an array of numbers.

    Examples
    --------
    >>> import numpy as np
    >>> names = {"encoder.weight_ih_l0": (8, 3), "encoder.weight_hh_l0": (8, 2), "head.weight": (1, 2)}
    >>> spec = find_recurrent_layer({name: np.zeros(shape) for name, shape in names.items()})
    >>> spec.prefix, spec.input_size, spec.hidden_size, spec.bias
    ('encoder.', 3, 2, False)
    """
    found = _by_prefix(mapping, _LAYER_NAME)
    prefix = _choose(mapping, found, prefix, gates, _kind(gates))
    arrays = found[prefix]
    projected = "weight_hr_l0" in arrays
    state_size, hidden_size = _matrix(arrays, prefix, "weight_hr_l0" if projected else "weight_hh_l0")
    input_size = _matrix(arrays, prefix, "weight_ih_l0")[1]
    num_layers = len({name.split("_")[2] for name in arrays})
    bias = any(name.startswith("bias") for name in arrays)
    bidirectional = any(name.endswith("_reverse") for name in arrays)
    proj_size = state_size if projected else 0
    shapes = _layer_shapes(gates, input_size, hidden_size, num_layers, bias, bidirectional, proj_size)
    parameters = _in_shape(arrays, prefix, shapes, gates, hidden_size)
    return RecurrentSpec(prefix, input_size, hidden_size, num_layers, bias, bidirectional, proj_size, parameters)


def find_cell(mapping: Mapping[str, Any], prefix: str = "", *, gates: int = 4) -> CellSpec:
    """Return the recurrent cell whose names begin with `prefix`; `find_recurrent_layer` says how and what it raises.

    >>> import numpy as np
    >>> spec = find_cell({"cell.weight_ih": np.zeros((8, 3)), "cell.weight_hh": np.zeros((8, 2))})
    >>> spec.prefix, spec.input_size, spec.hidden_size, spec.bias
    ('cell.', 3, 2, False)
    """
    found = _by_prefix(mapping, _CELL_NAME)
    prefix = _choose(mapping, found, prefix, gates, f"{_kind(gates)}Cell")
    arrays = found[prefix]
    input_size = _matrix(arrays, prefix, "weight_ih")[1]
    hidden_size = _matrix(arrays, prefix, "weight_hh")[1]
    bias = any(name.startswith("bias") for name in arrays)
    shapes = _one_direction(gates, input_size, hidden_size, hidden_size, bias)
    parameters = _in_shape(arrays, prefix, shapes, gates, hidden_size)
    return CellSpec(prefix, input_size, hidden_size, bias, parameters)


def _by_prefix(mapping: Mapping[str, Any], pattern: re.Pattern[str]) -> dict[str, dict[str, Array]]:
    """Return the arrays whose names match, by what stands before the name and then by the name."""
    found: dict[str, dict[str, Array]] = {}
    for key, value in as_mapping("state_dict", mapping).items():
        if isinstance(key, str) and (match := pattern.fullmatch(key)):
            found.setdefault(match["prefix"], {})[match["name"]] = as_array(f"state_dict[{key!r}]", value)
    return found


def _choose(
    mapping: Mapping[str, Any], found: Mapping[str, Mapping[str, Array]], prefix: str, gates: int, kind: str
) -> str:
    """Return the prefix of the one that is meant, or raise an error that lists what there is."""
    if not isinstance(prefix, str):
        raise TypeError(message("prefix", "a str", type(prefix).__name__))
    for exact in (prefix, f"{prefix}."):
        if exact in found:
            return exact
    candidates = [candidate for candidate in found if candidate.startswith(prefix)]
    if len(candidates) > 1:
        fitting = [candidate for candidate in candidates if _gates(found[candidate]) == gates]
        candidates = fitting or candidates
    if len(candidates) == 1:
        return candidates[0]
    listed = ", ".join(f"{name!r} ({_kind(_gates(found[name]))})" for name in candidates or found)
    if listed:
        got, hint = f"these by their prefixes: {listed}", "Choose one with prefix="
    else:
        inner = [key for key, value in mapping.items() if isinstance(value, Mapping)]
        got = f"only {', '.join(map(repr, list(mapping)[:8]))}" if mapping else "nothing"
        hint = f"Take the mapping inside it: state_dict[{inner[0]!r}]" if inner else ""
    because = f"prefix={prefix!r}" if prefix else ""
    raise ValueError(message("state_dict", f"the weights of one {kind}", got, because=because, hint=hint))


def _kind(gates: int) -> str:
    return _KINDS.get(gates, "other")


def _gates(arrays: Mapping[str, Array]) -> int:
    """Return how many gates a layer or cell has by its shapes, 0 if they do not say."""
    weight = arrays.get("weight_hh_l0", arrays.get("weight_hh"))
    units = arrays.get("weight_hr_l0", weight)
    if weight is None or units is None or weight.ndim != 2 or units.ndim != 2 or 0 in units.shape:
        return 0
    gates, rest = divmod(weight.shape[0], units.shape[1])
    return gates if rest == 0 else 0


def _matrix(arrays: Mapping[str, Array], prefix: str, name: str) -> tuple[int, int]:
    if name not in arrays:
        raise ValueError(message("state_dict", f"an array {prefix + name!r}", f"only {', '.join(map(repr, arrays))}"))
    if arrays[name].ndim != 2:
        raise ValueError(message(f"state_dict[{prefix + name!r}]", "two dimensions", arrays[name].shape))
    rows, columns = arrays[name].shape
    return rows, columns


def _layer_shapes(
    gates: int, input_size: int, hidden_size: int, num_layers: int, bias: bool, bidirectional: bool, proj_size: int
) -> dict[str, Shape]:
    """Return the shapes of all parameters of a layer, in torch's order."""
    directions = ("", "_reverse") if bidirectional else ("",)
    state_size = proj_size or hidden_size
    shapes: dict[str, Shape] = {}
    for layer in range(num_layers):
        inputs = input_size if layer == 0 else state_size * len(directions)
        for direction in directions:
            one = _one_direction(gates, inputs, hidden_size, state_size, bias)
            if proj_size:
                one["weight_hr"] = (proj_size, hidden_size)
            shapes |= {f"{name}_l{layer}{direction}": shape for name, shape in one.items()}
    return shapes


def _one_direction(gates: int, inputs: int, hidden_size: int, state_size: int, bias: bool) -> dict[str, Shape]:
    rows = gates * hidden_size
    shapes: dict[str, Shape] = {"weight_ih": (rows, inputs), "weight_hh": (rows, state_size)}
    return shapes | {"bias_ih": (rows,), "bias_hh": (rows,)} if bias else shapes


def _in_shape(
    arrays: Mapping[str, Array], prefix: str, shapes: Mapping[str, Shape], gates: int, hidden_size: int
) -> dict[str, Array]:
    """Return the arrays in the order of `shapes`, if they are all there and in those shapes."""
    if missing := [prefix + name for name in shapes if name not in arrays]:
        raise ValueError(message("state_dict", f"arrays {', '.join(map(repr, missing))} too", "none"))
    for name, shape in shapes.items():
        if (got := arrays[name].shape) != shape:
            kind = _KINDS.get(_gates(arrays))
            hint = f"By their shapes these are the weights of {kind}" if kind and _gates(arrays) != gates else ""
            because = f"hidden_size={hidden_size} and there are {gates} gates"
            raise ValueError(message(f"state_dict[{prefix + name!r}]", str(shape), got, because=because, hint=hint))
    return {name: arrays[name] for name in shapes}
