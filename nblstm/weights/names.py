"""Finds recurrent layers among named arrays, and reads their sizes off the shapes.

The names are torch's: ``weight_ih_l0``, ``weight_hh_l0``, ``bias_ih_l0``, ``bias_hh_l0`` and ``weight_hr_l0`` for each
layer, with ``_reverse`` for the other direction; ``weight_ih``, ``weight_hh``, ``bias_ih``, ``bias_hh`` for a cell.
Each may be there as the two parts that weight_norm makes of it. What stands before them is their prefix.
In letters: G gates (4 of an LSTM), I inputs, H hidden units, P units after the projection, D directions.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from nblstm.arrays import Array, as_array, as_mapping
from nblstm.errors import message
from nblstm.weights import weight_norm
from nblstm.weights.elements import is_bfloat16

Shape = tuple[int, ...]
Parts = list[tuple[str, str]]  # for one parameter: which part of it (an ending of its name, "" for all) under which key
Layers = dict[str, dict[str, Parts]]  # by prefix and name

_WHOLE, _G, _V = "", "_g", "_v"
_NEW_ENDINGS = {".original0": _G, ".original1": _V}  # as torch.nn.utils.parametrizations names the two parts


def _pattern(name: str) -> re.Pattern[str]:
    """Return the pattern of a key: a prefix and then a parameter's name, or the name of a part of it."""
    return re.compile(
        rf"(?P<prefix>.*?)(?:(?P<name>{name})(?P<part>|_g|_v|_orig)"
        rf"|parametrizations\.(?P<new_name>{name})(?P<new_part>\.original[01]?))",
        re.DOTALL,
    )


_LAYER_NAME = _pattern(r"(?:weight_ih|weight_hh|bias_ih|bias_hh|weight_hr)_l(?:0|[1-9][0-9]{0,3})(?:_reverse)?")
_CELL_NAME = _pattern(r"weight_ih|weight_hh|bias_ih|bias_hh")
_KINDS = {4: "LSTM", 3: "GRU", 1: "RNN"}

# What torch.nn.DataParallel and torch.compile put into the names of the module that they wrap.
_WRAPPERS = {"module", "_orig_mod"}


@dataclass(frozen=True)
class RecurrentSpec:
    """A recurrent layer found among named arrays.

    `kind` is the name of its class, ``"LSTM"``; `parameters` has the arrays under torch's own names (without `prefix`)
    and in torch's order; the other fields are the arguments with which such a layer is made.
    """

    kind: str
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

    kind: str
    prefix: str
    input_size: int
    hidden_size: int
    bias: bool
    parameters: dict[str, Array]


def find_recurrent_layer(mapping: Mapping[str, Any], prefix: str = "", *, gates: int = 4) -> RecurrentSpec:
    """Return the recurrent layer whose names begin with `prefix`, its sizes read off the shapes.

    With names directly after the prefix (a dot between them may be left out) that layer is taken; otherwise the one
    layer anywhere under the prefix. Where there are several, the one of `gates` gates. ``module.`` and ``_orig_mod.``,
    which torch.nn.DataParallel and torch.compile put into names, may be left out of the prefix. Weights in the two
    parts of weight_norm are put together. A bfloat16 of ml_dtypes becomes a float32.

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
    return _layer(mapping, prefix, found[prefix], gates)


def _layer(mapping: Mapping[str, Any], prefix: str, names: Mapping[str, Parts], gates: int) -> RecurrentSpec:
    """Return the layer of exactly this prefix, whose keys are known."""
    arrays = _arrays(mapping, prefix, names)
    projected = "weight_hr_l0" in arrays
    state_size, hidden_size = _matrix(arrays, prefix, "weight_hr_l0" if projected else "weight_hh_l0")
    input_size = _matrix(arrays, prefix, "weight_ih_l0")[1]
    num_layers = len({name.split("_")[2] for name in arrays})
    bias = any(name.startswith("bias") for name in arrays)
    bidirectional = any(name.endswith("_reverse") for name in arrays)
    proj_size = state_size if projected else 0
    shapes = _layer_shapes(gates, input_size, hidden_size, num_layers, bias, bidirectional, proj_size)
    parameters = _in_shape(arrays, prefix, shapes, gates, hidden_size)
    return RecurrentSpec(
        _kind(gates), prefix, input_size, hidden_size, num_layers, bias, bidirectional, proj_size, parameters
    )


def find_cell(mapping: Mapping[str, Any], prefix: str = "", *, gates: int = 4) -> CellSpec:
    """Return the recurrent cell whose names begin with `prefix`; `find_recurrent_layer` says how and what it raises.

    >>> import numpy as np
    >>> spec = find_cell({"cell.weight_ih": np.zeros((8, 3)), "cell.weight_hh": np.zeros((8, 2))})
    >>> spec.prefix, spec.input_size, spec.hidden_size, spec.bias
    ('cell.', 3, 2, False)
    """
    found = _by_prefix(mapping, _CELL_NAME)
    prefix = _choose(mapping, found, prefix, gates, f"{_kind(gates)}Cell")
    return _cell(mapping, prefix, found[prefix], gates)


def _cell(mapping: Mapping[str, Any], prefix: str, names: Mapping[str, Parts], gates: int) -> CellSpec:
    """Return the cell of exactly this prefix, whose keys are known."""
    arrays = _arrays(mapping, prefix, names)
    input_size = _matrix(arrays, prefix, "weight_ih")[1]
    hidden_size = _matrix(arrays, prefix, "weight_hh")[1]
    bias = any(name.startswith("bias") for name in arrays)
    shapes = _one_direction(gates, input_size, hidden_size, hidden_size, bias)
    parameters = _in_shape(arrays, prefix, shapes, gates, hidden_size)
    return CellSpec(f"{_kind(gates)}Cell", prefix, input_size, hidden_size, bias, parameters)


def list_recurrent(mapping: Mapping[str, Any]) -> list[RecurrentSpec | CellSpec | str]:
    """Return every recurrent layer and cell among named arrays; for one that cannot be loaded, the text that says why.

    >>> import numpy as np
    >>> shapes = {"a.weight_ih_l0": (6, 3), "a.weight_hh_l0": (6, 2), "b.weight_ih": (8, 3)}
    >>> layer, cell = list_recurrent({name: np.zeros(shape) for name, shape in shapes.items()})
    >>> layer.kind, layer.hidden_size
    ('GRU', 2)
    >>> cell
    "state_dict: expected an array 'b.weight_hh', got only 'weight_ih'"
    """
    listed: list[RecurrentSpec | CellSpec | str] = []
    for pattern, read in ((_LAYER_NAME, _layer), (_CELL_NAME, _cell)):
        for prefix, names in _by_prefix(mapping, pattern).items():
            try:
                gates = _gates_of(mapping, names)
                listed.append(read(mapping, prefix, names, gates if gates in _KINDS else 4))
            except (TypeError, ValueError) as error:
                listed.append(str(error))
    return listed


def _by_prefix(mapping: Mapping[str, Any], pattern: re.Pattern[str]) -> Layers:
    """Return the keys that match, by what stands before the name and then by the name."""
    found: Layers = {}
    for key in as_mapping("state_dict", mapping):
        if isinstance(key, str) and (match := pattern.fullmatch(key)):
            name, ending = match["name"] or match["new_name"], match["part"] or match["new_part"] or _WHOLE
            part = _NEW_ENDINGS.get(ending, ending)
            found.setdefault(match["prefix"], {}).setdefault(name, []).append((part, key))
    return found


def _arrays(mapping: Mapping[str, Any], prefix: str, names: Mapping[str, Parts]) -> dict[str, Array]:
    """Return the arrays of one layer by their names, those in parts put together."""
    arrays = {}
    for name, parts in names.items():
        keys = dict(sorted(parts))
        if len(keys) < len(parts) or list(keys) not in ([_WHOLE], [_G, _V]):
            expected = f"{prefix + name!r} as one array, or as the g and v of weight_norm"
            functions = "parametrize.remove_parametrizations"
            if "_orig" in keys:  # as the old spectral_norm and prune leave it, which are no parametrizations
                functions = "remove_spectral_norm or torch.nn.utils.prune.remove"
            hint = f"Remove what else changes the weights before you save: torch.nn.utils.{functions}"
            got = ", ".join(repr(key) for _, key in parts)
            raise ValueError(message("state_dict", expected, f"only {got}" if len(parts) == 1 else got, hint=hint))
        read = [_array(mapping, key) for key in keys.values()]
        arrays[name] = read[0] if len(read) == 1 else weight_norm.join(f"state_dict[{keys[_G]!r}]", *read)
    return arrays


def _array(mapping: Mapping[str, Any], key: str) -> Array:
    """Return the array under this key; a bfloat16 of ml_dtypes is widened exactly, as the kernels have none."""
    value = mapping[key]
    return value.astype(np.float32) if is_bfloat16(value) else as_array(f"state_dict[{key!r}]", value)


def _choose(mapping: Mapping[str, Any], found: Layers, prefix: str, gates: int, kind: str) -> str:
    """Return the prefix of the one that is meant, or raise an error that lists what there is."""
    if not isinstance(prefix, str):
        raise TypeError(message("prefix", "a str", type(prefix).__name__))
    candidates = _meant(list(found), prefix)
    if len(candidates) > 1:
        fitting = [candidate for candidate in candidates if _gates_of(mapping, found[candidate]) == gates]
        candidates = fitting or candidates
    if len(candidates) == 1:
        return candidates[0]
    listed = ", ".join(f"{name!r} ({_kind(_gates_of(mapping, found[name]))})" for name in candidates or found)
    if listed:
        got, hint = f"these by their prefixes: {listed}", "Choose one with prefix="
    else:
        inner = [key for key, value in mapping.items() if isinstance(value, Mapping)]
        got = f"only {', '.join(map(repr, list(mapping)[:8]))}" if mapping else "nothing"
        hint = f"Take the mapping inside it: state_dict[{inner[0]!r}]" if inner else ""
    because = f"prefix={prefix!r}" if prefix else ""
    raise ValueError(message("state_dict", f"the weights of one {kind}", got, because=because, hint=hint))


def _meant(prefixes: list[str], prefix: str) -> list[str]:
    """Return those of `prefixes` that `prefix` can mean: itself, with a dot, without wrappers, or what begins so."""
    for exact in (prefix, f"{prefix}."):
        if exact in prefixes:
            return [exact]
    bare = _without_wrappers(prefix)
    return (
        [name for name in prefixes if bare and _without_wrappers(name) in (bare, f"{bare}.")]
        or [name for name in prefixes if name.startswith(prefix)]
        or [name for name in prefixes if _without_wrappers(name).startswith(bare)]
    )


def _without_wrappers(prefix: str) -> str:
    """Return a prefix without the components that a wrapper has put in.

    >>> _without_wrappers("module.encoder._orig_mod.lstm.")
    'encoder.lstm.'
    """
    return ".".join(part for part in prefix.split(".") if part not in _WRAPPERS)


def _kind(gates: int) -> str:
    return _KINDS.get(gates, f"layer of {gates} gates")


def _gates_of(mapping: Mapping[str, Any], names: Mapping[str, Parts]) -> int:
    """Return `_gates` of a layer or cell that is not read yet."""
    # The last part is the whole weight, or the v of weight_norm, which has its shape.
    keys = {name: max(names[name])[1] for name in ("weight_hh_l0", "weight_hh", "weight_hr_l0") if name in names}
    return _gates({name: _array(mapping, key) for name, key in keys.items()})


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
