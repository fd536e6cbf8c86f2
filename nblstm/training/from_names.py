"""Finds the parameters of a layer that has one matrix, ``weight``, among the named arrays of a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from nblstm.arrays import Array, as_array, as_mapping
from nblstm.errors import message
from nblstm.weights.elements import is_bfloat16


def find_weight(state_dict: Mapping[str, Any], prefix: str, more: tuple[str, ...] = ()) -> dict[str, Array]:
    """Return ``weight``, and of the names in `more` those that are there too, without their prefix.

    The prefix may lack its dot at the end. Names directly after it are taken; otherwise the one matrix ``weight``
    anywhere under it. A bfloat16 of ml_dtypes becomes a float32.

    Raises ValueError if there is no such matrix or more than one (their prefixes are listed), and TypeError for what is
    no mapping of names to arrays, and for a prefix that is no str.

    >>> import numpy as np
    >>> list(find_weight({"lstm.weight_ih_l0": np.ones((8, 3)), "head.weight": np.ones((5, 2))}, ""))
    ['weight']
    """
    mapping = as_mapping("state_dict", state_dict)
    if not isinstance(prefix, str):
        raise TypeError(message("prefix", "a str", type(prefix).__name__))
    names = [name for name in mapping if isinstance(name, str)]
    ends = [name.removesuffix("weight") for name in names if name == "weight" or name.endswith(".weight")]
    found = [end for end in ends if end.startswith(prefix) and len(np.shape(mapping[f"{end}weight"])) == 2]
    exact = [end for end in found if end.removesuffix(".") == prefix.removesuffix(".")]
    chosen = exact or found
    if len(chosen) != 1:
        hint = "" if len(chosen) < 2 else "Name one of them with prefix="
        got = ", ".join(repr(end) for end in chosen) or f"only {', '.join(names[:20]) or 'an empty mapping'}"
        raise ValueError(message("state_dict", f"one matrix 'weight' under {prefix!r}", got, hint=hint))
    keys = {name: chosen[0] + name for name in ("weight", *more)}
    return {name: _array(mapping, key) for name, key in keys.items() if key in mapping}


def _array(mapping: Mapping[str, Any], key: str) -> Array:
    value = mapping[key]
    return value.astype(np.float32) if is_bfloat16(value) else as_array(f"state_dict[{key!r}]", value)
