"""LSTM weights of other homes as torch's named parameters, and back.

All homes compute the same LSTM: gates i, f, g, o of x W_ih' + b_ih + h W_hh' + b_hh. They differ in the order of the
gates (the cell's candidate g is also called c or a), in which side the input stands on, and in how many biases they
have:

========  ==========  ==============================================  ==============================
home      gates       matrices                                        biases
========  ==========  ==============================================  ==============================
torch     i, f, g, o  weight_ih (4H, I), weight_hh (4H, H)            bias_ih (4H,), bias_hh (4H,)
Keras     i, f, c, o  kernel (I, 4H), recurrent_kernel (H, 4H)        bias (4H,)
haste     i, g, f, o  kernel (I, 4H), recurrent_kernel (H, 4H)        bias (4H,)
ONNX      i, o, f, c  W (D, 4H, I), R (D, 4H, H) of all D directions  B (D, 8H): of W, then of R
per gate  by names    W_i W_f W_o W_a (I, H), U_i U_f U_o U_a (H, H)  b_i b_f b_o b_a (H,)
========  ==========  ==============================================  ==============================

A ``from_`` function returns the parameters of one layer; those of several layers and directions are put together with
``|`` and are then what `nblstm.LSTM.from_state_dict` and `torch.nn.LSTM.load_state_dict` take. A ``to_`` function takes
them back out. No number changes on the way: what comes out has the bits of what went in. The one exception: a home with
one bias gets the sum of torch's two, rounded once; on the way to torch it becomes ``bias_ih``, and ``bias_hh`` is zero.

>>> import numpy as np
>>> import nblstm
>>> first = from_keras(np.ones((3, 8)), np.ones((2, 8)), np.zeros(8))
>>> second = from_keras(np.ones((2, 8)), np.ones((2, 8)), np.zeros(8), layer=1)
>>> lstm = nblstm.LSTM.from_state_dict(first | second)
>>> lstm
LSTM(3, 2, num_layers=2)
>>> to_keras(lstm.state_dict(), layer=1).kernel.shape
(2, 8)

What is no weight is not looked at: activations have to be sigmoid and tanh (Keras before 2.3 had a hard sigmoid unless
told otherwise), without clipping, without coupled gates, without zoneout.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from nblstm.arrays import Array, as_array, as_mapping, as_whole_number
from nblstm.errors import message
from nblstm.weights.names import RecurrentSpec, find_recurrent_layer

_TORCH, _KERAS, _HASTE, _ONNX = "ifgo", "ifgo", "igfo", "iofg"
_PER_GATE = "ifao"  # the endings of the names, in torch's order
_NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


class KernelWeights(NamedTuple):
    """One layer and direction of Keras or haste: `kernel` (I, 4H), `recurrent_kernel` (H, 4H), `bias` (4H,) or None."""

    kernel: Array
    recurrent_kernel: Array
    bias: Array | None


class OnnxWeights(NamedTuple):
    """The inputs of one ONNX node of D directions: `W` (D, 4H, I), `R` (D, 4H, H), `B` (D, 8H) or None."""

    W: Array
    R: Array
    B: Array | None


def from_keras(
    kernel: Any, recurrent_kernel: Any, bias: Any = None, *, layer: int = 0, reverse: bool = False
) -> dict[str, Array]:
    """Return the parameters of a Keras LSTM: ``from_keras(*keras_layer.get_weights())``.

    A Bidirectional layer has six arrays, the forward three first: pass the last three with ``reverse=True``.

    Parameters
    ----------
    kernel : (I, 4H) array
    recurrent_kernel : (H, 4H) array
    bias : (4H,) array, optional
        None: without biases (``use_bias=False``).
    layer : int
        Which layer it becomes: the number in the names.
    reverse : bool
        True: the direction that runs from the end to the beginning.

    Returns
    -------
    dict of str to array
        ``weight_ih_l0`` (4H, I), ``weight_hh_l0`` (4H, H) and, with a bias, ``bias_ih_l0`` and ``bias_hh_l0`` (4H,).

    Raises
    ------
    ValueError
        The shapes do not fit one another.
    TypeError
        Something that is no array of numbers, or a layer that is no whole number.

    Examples
    --------
    >>> {name: array.shape for name, array in from_keras(np.ones((3, 8)), np.ones((2, 8))).items()}
    {'weight_ih_l0': (8, 3), 'weight_hh_l0': (8, 2)}
    """
    return _from_kernels("from_keras", _KERAS, kernel, recurrent_kernel, bias, layer, reverse)


def to_keras(
    state_dict: Mapping[str, Any], *, layer: int = 0, reverse: bool = False, prefix: str = ""
) -> KernelWeights:
    """Return one layer and direction of torch's parameters for Keras: ``keras_layer.set_weights(to_keras(...))``.

    Without biases the last one of the three is None, and not to be passed.

    Parameters
    ----------
    state_dict : mapping of str to array
        All parameters of an LSTM, alone or in those of a whole model, as `LSTM.from_state_dict` finds them.
    layer : int
        Which layer to take.
    reverse : bool
        True: its other direction.
    prefix : str
        What stands before ``weight_ih_l0`` in the names, or the beginning of it: which LSTM of several to take.

    Raises
    ------
    ValueError
        There is no such LSTM, or more than one, or it has no such layer or direction, or it has a projection, which no
        other home has.
    TypeError
        `state_dict` is no mapping of names to arrays, `layer` no whole number, or `prefix` no str.

    Examples
    --------
    >>> weights = to_keras(from_keras(np.ones((3, 8)), np.ones((2, 8)), np.ones(8)))
    >>> weights.kernel.shape, weights.recurrent_kernel.shape, weights.bias.shape
    ((3, 8), (2, 8), (8,))
    """
    return _to_kernels("to_keras", _KERAS, state_dict, layer, reverse, prefix)


def from_haste(
    kernel: Any, recurrent_kernel: Any, bias: Any = None, *, layer: int = 0, reverse: bool = False
) -> dict[str, Array]:
    """Return the parameters of a haste LSTM; arguments, result and errors are those of `from_keras`.

    >>> from_haste(np.array([[1, 2, 3, 4]]), np.ones((1, 4)))["weight_ih_l0"].ravel().tolist()
    [1, 3, 2, 4]
    """
    return _from_kernels("from_haste", _HASTE, kernel, recurrent_kernel, bias, layer, reverse)


def to_haste(
    state_dict: Mapping[str, Any], *, layer: int = 0, reverse: bool = False, prefix: str = ""
) -> KernelWeights:
    """Return one layer and direction of torch's parameters for haste; arguments and errors are those of `to_keras`.

    >>> to_haste({"weight_ih_l0": np.array([[1], [2], [3], [4]]), "weight_hh_l0": np.ones((4, 1))}).kernel.tolist()
    [[1, 3, 2, 4]]
    """
    return _to_kernels("to_haste", _HASTE, state_dict, layer, reverse, prefix)


def from_onnx(W: Any, R: Any, B: Any = None, P: Any = None, *, layer: int = 0) -> dict[str, Array]:
    """Return the parameters of an ONNX LSTM node, both directions if it has two.

    Parameters
    ----------
    W : (D, 4H, I) array
    R : (D, 4H, H) array
    B : (D, 8H) array, optional
        The biases of W and then those of R; None: without biases.
    P : (D, 3H) array, optional
        Peepholes, which have to be zero.
    layer : int
        Which layer it becomes: the number in the names.

    Raises
    ------
    ValueError
        The shapes do not fit one another, or a peephole is not zero.
    TypeError
        Something that is no array of numbers, or a layer that is no whole number.

    Examples
    --------
    >>> list(from_onnx(np.ones((2, 8, 3)), np.ones((2, 8, 2))))
    ['weight_ih_l0', 'weight_hh_l0', 'weight_ih_l0_reverse', 'weight_hh_l0_reverse']
    """
    sizes: dict[str, int] = {}
    r = _fitting("from_onnx R", R, "D 4H H", sizes)
    w = _fitting("from_onnx W", W, "D 4H I", sizes)
    b = None if B is None else _fitting("from_onnx B", B, "D 8H", sizes)
    if P is not None and _fitting("from_onnx P", P, "D 3H", sizes).any():
        raise ValueError(message("from_onnx P", "no peepholes, or zeros", "others", because="torch's LSTM has none"))
    if sizes["D"] not in (1, 2):
        raise ValueError(message("from_onnx R", "(D, 4H, H) with one or two directions", r.shape))
    parameters: dict[str, Array] = {}
    for direction in range(sizes["D"]):
        arrays = [w[direction], r[direction], *(() if b is None else np.split(b[direction], 2))]
        parameters |= _named([_reordered(array, _ONNX, _TORCH) for array in arrays], layer, direction == 1)
    return parameters


def to_onnx(state_dict: Mapping[str, Any], *, layer: int = 0, prefix: str = "") -> OnnxWeights:
    """Return the inputs of an ONNX LSTM node for one layer, of all its directions; else as `to_keras`.

    >>> parameters = from_onnx(np.ones((2, 8, 3)), np.ones((2, 8, 2)), np.ones((2, 16)))
    >>> [array.shape for array in to_onnx(parameters)]
    [(2, 8, 3), (2, 8, 2), (2, 16)]
    """
    found = _found("to_onnx", state_dict, layer, prefix)
    directions = [_direction(found, layer, reverse) for reverse in (False, True)[: 1 + found.bidirectional]]
    w, r, *biases = (
        np.stack([_reordered(one, _TORCH, _ONNX) for one in each]) for each in zip(*directions, strict=True)
    )
    return OnnxWeights(w, r, np.concatenate(biases, axis=1) if biases else None)


def from_per_gate(weights: Mapping[str, Any], *, layer: int = 0, reverse: bool = False) -> dict[str, Array]:
    """Return the parameters of an LSTM with three arrays a gate, which computes x W_i + h U_i + b_i and so on.

    Parameters
    ----------
    weights : mapping of str to array
        ``W_i``, ``W_f``, ``W_o``, ``W_a`` (I, H); ``U_i``, ``U_f``, ``U_o``, ``U_a`` (H, H); ``b_i``, ``b_f``, ``b_o``,
        ``b_a`` (H,), or none of these four. ``a`` is the cell's candidate, torch's g. Other names are passed over.
    layer : int
        Which layer it becomes: the number in the names.
    reverse : bool
        True: the direction that runs from the end to the beginning.

    Raises
    ------
    ValueError
        A name is missing, or the shapes do not fit one another.
    TypeError
        `weights` is no mapping of names to arrays, or `layer` no whole number.

    Examples
    --------
    >>> weights = {f"W_{gate}": np.ones((3, 2)) for gate in "ifoa"} | {f"U_{gate}": np.ones((2, 2)) for gate in "ifoa"}
    >>> {name: array.shape for name, array in from_per_gate(weights).items()}
    {'weight_ih_l0': (8, 3), 'weight_hh_l0': (8, 2)}
    """
    given = as_mapping("from_per_gate weights", weights)
    with_bias = any(f"b_{gate}" in given for gate in _PER_GATE)
    names = {kind: [f"{kind}_{gate}" for gate in _PER_GATE] for kind in ("UWb" if with_bias else "UW")}
    if missing := [name for of_kind in names.values() for name in of_kind if name not in given]:
        raise ValueError(message("from_per_gate weights", f"arrays {', '.join(map(repr, missing))} too", "none"))
    axes, sizes = {"U": "H H", "W": "I H", "b": "H"}, dict[str, int]()
    arrays = {
        kind: [_fitting(f"from_per_gate weights[{name!r}]", given[name], axes[kind], sizes).T for name in of_kind]
        for kind, of_kind in names.items()
    }
    return _named([np.concatenate(arrays[kind]) for kind in "WUb" if kind in arrays], layer, reverse)


def to_per_gate(
    state_dict: Mapping[str, Any], *, layer: int = 0, reverse: bool = False, prefix: str = ""
) -> dict[str, Array]:
    """Return one layer and direction of torch's parameters gate by gate; arguments and errors are those of `to_keras`.

    >>> parameters = {"weight_ih_l0": np.ones((8, 3)), "weight_hh_l0": np.ones((8, 2))}
    >>> list(to_per_gate(parameters))
    ['W_i', 'W_f', 'W_a', 'W_o', 'U_i', 'U_f', 'U_a', 'U_o']
    """
    arrays = _with_one_bias(_direction(_found("to_per_gate", state_dict, layer, prefix), layer, reverse))
    return {
        f"{kind}_{gate}": np.array(block.T, order="C")
        for kind, array in zip("WUb", arrays, strict=False)
        for gate, block in zip(_PER_GATE, np.split(array, 4), strict=True)
    }


def _from_kernels(
    name: str, gates: str, kernel: Any, recurrent_kernel: Any, bias: Any, layer: int, reverse: bool
) -> dict[str, Array]:
    """Return the parameters of a home with transposed matrices and one bias, its gates in this order."""
    sizes: dict[str, int] = {}
    hidden = _fitting(f"{name} recurrent_kernel", recurrent_kernel, "H 4H", sizes)
    arrays = [_fitting(f"{name} kernel", kernel, "I 4H", sizes).T, hidden.T]
    if bias is not None:
        arrays.append(_fitting(f"{name} bias", bias, "4H", sizes))
    return _named([_reordered(array, gates, _TORCH) for array in arrays], layer, reverse)


def _to_kernels(
    name: str, gates: str, state_dict: Mapping[str, Any], layer: int, reverse: bool, prefix: str
) -> KernelWeights:
    """Return the opposite of `_from_kernels`."""
    arrays = _with_one_bias(_direction(_found(name, state_dict, layer, prefix), layer, reverse))
    kernel, recurrent_kernel, *bias = (np.array(_reordered(array, _TORCH, gates).T, order="C") for array in arrays)
    return KernelWeights(kernel, recurrent_kernel, bias[0] if bias else None)


def _found(name: str, state_dict: Mapping[str, Any], layer: int, prefix: str) -> RecurrentSpec:
    """Return the LSTM among named arrays, if it has that layer and no projection."""
    found = find_recurrent_layer(state_dict, prefix)
    if not 0 <= as_whole_number(f"{name} layer", layer) < found.num_layers:
        raise ValueError(message(f"{name} layer", "one of the LSTM's", layer, because=f"num_layers={found.num_layers}"))
    if found.proj_size:
        raise ValueError(message(f"{name} state_dict", "an LSTM without projection", f"proj_size={found.proj_size}"))
    return found


def _direction(found: RecurrentSpec, layer: int, reverse: bool) -> list[Array]:
    """Return weight_ih, weight_hh and the two biases, if there are any, of one layer and direction."""
    if reverse and not found.bidirectional:
        raise ValueError(message("reverse", "False", reverse, because="the LSTM has one direction"))
    ending = f"_l{layer}{'_reverse' if reverse else ''}"
    names = [f"{kind}{ending}" for kind in _NAMES]
    return [found.parameters[name] for name in names if name in found.parameters]


def _named(arrays: list[Array], layer: int, reverse: bool) -> dict[str, Array]:
    """Return the arrays of one layer and direction under torch's names; a single bias is followed by zeros."""
    if as_whole_number("layer", layer) < 0:
        raise ValueError(message("layer", "0 or more", layer))
    if len(arrays) == 3:
        arrays = [*arrays, np.zeros_like(arrays[2])]
    ending = f"_l{layer}{'_reverse' if reverse else ''}"
    # Without biases there are two arrays for the four names.
    return {f"{kind}{ending}": np.ascontiguousarray(array) for kind, array in zip(_NAMES, arrays, strict=False)}


def _with_one_bias(arrays: list[Array]) -> list[Array]:
    """Return weight_ih, weight_hh and, where there are biases, their sum."""
    matrices, biases = arrays[:2], arrays[2:]
    if not biases:
        return matrices
    b_ih, b_hh = biases
    return [*matrices, np.where(b_hh == 0, b_ih, b_ih + b_hh)]  # -0.0 + 0.0 is 0.0, which has other bits


def _reordered(rows: Array, gates: str, target: str) -> Array:
    """Return rows (4H, ...) of these gates in the order of the target's gates.

    >>> _reordered(np.array([1, 2, 3, 4]), "iofg", "ifgo").tolist()
    [1, 3, 4, 2]
    """
    blocks = dict(zip(gates, np.split(rows, 4), strict=True))
    return np.concatenate([blocks[gate] for gate in target])


def _fitting(argument: str, value: Any, axes: str, sizes: dict[str, int]) -> Array:
    """Return `value` as an array of these axes, ``"H 4H"``; what they say of sizes not known yet is added to `sizes`.

    >>> sizes = {}
    >>> _fitting("kernel", np.ones((3, 8)), "I 4H", sizes).shape, sizes
    ((3, 8), {'I': 3, 'H': 2})
    """
    array, letters, known = as_array(argument, value), axes.split(), sizes.copy()
    fits = array.ndim == len(letters)
    for axis, got in zip(letters, array.shape, strict=False):
        factor, letter = int(axis[:-1] or 1), axis[-1]
        fits &= got == factor * sizes.setdefault(letter, got // factor)
    if not fits:
        because = ", ".join(f"{letter}={known[letter]}" for letter in "DHI" if letter in known and letter in axes)
        expected = f"({', '.join(letters)}{',' * (len(letters) == 1)})"
        raise ValueError(message(argument, expected, array.shape, because=because))
    return array
