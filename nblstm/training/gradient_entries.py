"""How gradients are handed to optimisers and to clipping: one entry for each layer, in the order of the layers.

An entry is what the backward of a layer returns, or anything else with ``parameters``, a mapping of names to arrays;
or that mapping itself. None in place of an entry or of an array, or a name left out: no gradient.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from nblstm.arrays import as_mapping
from nblstm.errors import message


def entries_of(argument: str, gradients: Any) -> list[Any]:
    """Return the entries; those of a single layer may stand without a list. TypeError for anything else.

    >>> entries_of("gradients", [{"bias": 1}, None])
    [{'bias': 1}, None]
    >>> entries_of("gradients", {"bias": 1})
    [{'bias': 1}]
    """
    if gradients is None or isinstance(gradients, Mapping) or hasattr(gradients, "parameters"):
        return [gradients]
    if isinstance(gradients, (str, bytes, set, frozenset, np.ndarray)) or not isinstance(gradients, Iterable):
        expected = "a list with one entry for each layer: what its backward returned, or a mapping of names to arrays"
        raise TypeError(message(argument, expected, type(gradients).__name__))
    return list(gradients)


def named_arrays(argument: str, entry: Any) -> dict[str, Any]:
    """Return the gradients of an entry by name, without those that are None.

    >>> named_arrays("gradients[0]", {"weight": None, "bias": 1})
    {'bias': 1}
    """
    if entry is None:
        return {}
    found = entry if isinstance(entry, Mapping) else getattr(entry, "parameters", entry)
    return {name: array for name, array in as_mapping(argument, found).items() if array is not None}
