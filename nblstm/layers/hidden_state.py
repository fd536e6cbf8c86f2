"""Layers whose only state is h: what GRU and RNN have in common."""

from __future__ import annotations

from typing import Any, overload

from nblstm.arrays import Array
from nblstm.layers.gradients import Backward
from nblstm.layers.recurrent import RecurrentLayer
from nblstm.sequences import PackedLike, PackedSequence


class HiddenStateLayer(RecurrentLayer):
    """What GRU and RNN have in common: a state of h alone, handed in and out as one array."""

    @overload
    def __call__(
        self,
        x: PackedLike,
        hx: Any = None,
        *,
        lengths: None = None,
        out: Array | None = None,
        dropout_call: int | None = None,
    ) -> tuple[PackedSequence, Array]: ...

    @overload
    def __call__(
        self,
        x: Any,
        hx: Any = None,
        *,
        lengths: Any = None,
        out: Array | None = None,
        dropout_call: int | None = None,
    ) -> tuple[Array, Array]: ...

    def __call__(
        self,
        x: Any,
        hx: Any = None,
        *,
        lengths: Any = None,
        out: Array | None = None,
        dropout_call: int | None = None,
    ) -> tuple[Any, Array]:
        """Run the network over whole sequences.

        Parameters
        ----------
        x : array or PackedSequence
            (T, B, I), (B, T, I) if `batch_first`, or (T, I) unbatched; of the layer's dtype. Anything that is an array
            to NumPy, or has ``__dlpack__``, or holds such arrays as a packed sequence. Never written to.
        hx : array, optional
            h_0 (L*D, B, H), without B if x is unbatched. None: zeros.
        lengths : (B,) whole numbers, optional
            The valid steps of each row of a padded x, from 1 to T. What stands past them is never read.
        out : array, optional
            Where to write the output: any strides, but no memory in common with x and hx.
        dropout_call : int, optional
            The number of the dropout mask, from 0 to 2**64 - 1. None: the next one of this layer.

        Returns
        -------
        output : array or PackedSequence
            (T, B, D*H), (B, T, D*H), (T, D*H) or packed, as x is; zero past each row's length.
        h_n : array
            Shaped like h_0; the state at each row's last valid step.

        Raises
        ------
        ValueError
            Another number of axes, another dtype, an `out` that cannot be written to, lengths beyond T.
        RuntimeError
            Other sizes than these, T = 0, lengths below 1.
        TypeError
            Something that is no array of numbers, or a tuple for hx.
        """
        output, (h_n,) = self._run(x, hx, lengths, out, dropout_call)
        return output, h_n

    def vjp(
        self,
        x: Any,
        hx: Any = None,
        *,
        lengths: Any = None,
        input: bool = True,
        dropout_call: int | None = None,
    ) -> tuple[tuple[Any, Array], Backward]:
        """Run the network, and return the way back through it: the vector-Jacobian product.

        ``(output, h_n), backward = gru.vjp(x)`` gives what a call gives, and ``gradients = backward(d_output,
        d_state)`` the gradients of a scalar whose gradients by the output and the last states these are:
        `Gradients` of the input, of hx and of every parameter. The arguments are those of a call; with ``input=False``
        the gradient of the input is not computed. For truncated backpropagation hand the states on to the next call:
        no gradient flows through them.

        >>> import numpy as np
        >>> from nblstm import GRU
        >>> gru = GRU(2, 3, seed=0)
        >>> (output, h_n), backward = gru.vjp(np.ones((5, 1, 2), np.float32))
        >>> gradients = backward(d_output=np.ones_like(output))
        >>> gradients.input.shape, gradients.parameters["weight_hh_l0"].shape
        ((5, 1, 2), (9, 3))
        """
        output, (h_n,), backward = self._vjp(x, hx, lengths, input, dropout_call)
        return (output, h_n), backward
