"""The dense layer, y = x W^T + b: torch.nn.Linear on the register tile of the recurrent layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from nblstm.arrays import Array
from nblstm.engine.dense import multiply_rows, pack_forward, pack_transposed, sum_products
from nblstm.errors import message
from nblstm.layers import checks
from nblstm.layers.base import Layer, Weights, common_dtype
from nblstm.training.from_names import find_weight
from nblstm.training.gradients import Gradients, check_gradient


class Linear(Layer):
    """A dense layer, y = x W^T + b, as ``torch.nn.Linear``: it makes class scores or values of what an LSTM puts out.

    ``weight`` is (O, I) and ``bias`` (O,), or None without one; both start from U(-1/sqrt(I), 1/sqrt(I)). Every output
    is a sum whose order depends on I alone: a row has the same bits alone and among others, with any number of threads.

    Parameters
    ----------
    in_features : int
        I, the numbers of a row of the input.
    out_features : int
        O, those of a row of the output.
    bias : bool
        False: no ``bias``.
    dtype : dtype
        float32 or float64: the type of parameters, inputs and outputs.
    seed : int, optional
        Determines the initial parameters; None: different ones each time.

    Raises
    ------
    TypeError, ValueError
        An argument of another type, or a size below 1.

    Examples
    --------
    >>> import numpy as np
    >>> decoder = Linear(20, 5, seed=0)
    >>> decoder(np.zeros((7, 3, 20), np.float32)).shape
    (7, 3, 5)
    """

    _FIXED = Layer._FIXED | {"in_features", "out_features"}

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        dtype: npt.DTypeLike = np.float32,
        seed: int | None = None,
    ) -> None:
        name = type(self).__name__
        self.in_features = checks.check_size(name, "in_features", in_features)
        self.out_features = checks.check_size(name, "out_features", out_features)
        shapes: dict[str, tuple[int, ...]] = {"weight": (out_features, in_features)}
        if checks.check_flag(name, "bias", bias):
            shapes["bias"] = (out_features,)
        else:
            self.bias = None
        self._initialise(shapes, in_features, dtype, np.random.SeedSequence(checks.check_seed(name, seed)))

    @classmethod
    def from_state_dict(
        cls, state_dict: Mapping[str, Any], prefix: str = "", *, dtype: npt.DTypeLike | None = None
    ) -> Linear:
        """Build the layer whose parameters are in `state_dict`; their shapes say how large it is.

        Parameters
        ----------
        state_dict : mapping of str to array
            The parameters of this layer, or of a whole model around it.
        prefix : str
            What stands before ``weight`` in the names, ``"decoder."``. Not needed if there is but one such matrix.
        dtype : dtype, optional
            None: that of the weights, and float32 where they are narrower.

        Raises
        ------
        ValueError
            No such matrix has that prefix, or more than one; the error lists them.
        TypeError
            `state_dict` is no mapping of names to arrays, or `prefix` no str.

        Examples
        --------
        >>> import numpy as np
        >>> Linear.from_state_dict({"decoder.weight": np.ones((5, 20)), "decoder.bias": np.zeros(5)}, "decoder")
        Linear(20, 5)
        """
        found = find_weight(state_dict, prefix, ("bias",))
        outputs, inputs = found["weight"].shape
        dtype = common_dtype(found) if dtype is None else dtype
        return cls._with_parameters(found, inputs, outputs, bias="bias" in found, dtype=dtype)

    def __repr__(self) -> str:
        bias = "" if "bias" in self._weights.parameters else ", bias=False"
        return f"{type(self).__name__}({self.in_features}, {self.out_features}{bias})"

    def __call__(self, x: Any) -> Array:
        """Return x W^T + b, (..., O), for x (..., I) of the layer's dtype and any leading shape; a fresh array.

        The data of a `PackedSequence` is such an array. Raises ValueError for another dtype, RuntimeError for another
        last axis or none, TypeError for what is no array of numbers.
        """
        weights = self._weights
        rows, shape = self._rows(x, weights)
        return multiply_rows(rows, weights.packed(pack_forward)).reshape(shape)

    def vjp(self, x: Any, *, input: bool = True) -> tuple[Array, Callable[[Any], Gradients]]:
        """Return the output, and the way back: ``gradients = backward(d_output)``, any number of times.

        The gradients are ``input``, shaped like x, and ``parameters``, ``"weight"`` and ``"bias"``, summed over all
        rows; with ``input=False`` that of the input is not computed. The way back reads x once more: do not change it
        in between.

        >>> import numpy as np
        >>> output, backward = Linear(4, 2, seed=0).vjp(np.ones((5, 3, 4), np.float32))
        >>> gradients = backward(np.ones_like(output))
        >>> gradients.input.shape, gradients.parameters["weight"].shape, gradients.parameters["bias"]
        ((5, 3, 4), (2, 4), array([15., 15.], dtype=float32))
        """
        checks.check_flag(f"{type(self).__name__}.vjp", "input", input)
        weights = self._weights
        rows, shape = self._rows(x, weights)

        def backward(d_output: Any) -> Gradients:
            dy = check_gradient(f"{type(self).__name__} backward d_output", d_output, shape, weights.dtype)
            dy = dy.reshape(-1, shape[-1])
            dx = None
            if input:
                dx = multiply_rows(dy, weights.packed(pack_transposed)).reshape(*shape[:-1], rows.shape[-1])
            found = dict(zip(("weight", "bias"), sum_products(dy, rows), strict=True))
            return Gradients(dx, {name: found[name] for name in weights.parameters})

        return multiply_rows(rows, weights.packed(pack_forward)).reshape(shape), backward

    def _rows(self, x: Any, weights: Weights) -> tuple[Array, tuple[int, ...]]:
        """Return the input as contiguous rows (N, I), and the shape of the output."""
        argument = f"{type(self).__name__} input"
        array = checks.check_array(argument, x, weights.dtype)
        if array.ndim == 0 or array.shape[-1] != self.in_features:
            because = f"in_features={self.in_features}"
            raise RuntimeError(message(argument, f"(..., {self.in_features})", array.shape, because=because))
        return np.ascontiguousarray(array).reshape(-1, self.in_features), (*array.shape[:-1], self.out_features)
