"""One call of a layer, between the user's shapes and the engine's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from nblstm.arrays import Array
from nblstm.engine.run import SequenceLayout
from nblstm.sequences import PackedSequence


class SequenceCall(NamedTuple):
    """One call of a layer in the engine's terms; everything in it has been checked."""

    x: Array  # (T, B, I), or (N, I) packed; any strides
    layout: SequenceLayout
    states: Sequence[Array | None]  # each (L*D, B, size); None: zeros
    y: Array  # (T, B, D*P), or (N, D*P) packed: where the kernels write; dense last axis
    target: Array  # the user's output in the shape of y: y itself, or what y is to be copied to
    output: Array | PackedSequence  # the user's output in the user's shape
    batched: bool
    batch_first: bool

    def finish(self, states: tuple[Array, ...]) -> tuple[Array | PackedSequence, tuple[Array, ...]]:
        """Return the output and the last states, (L*D, B, size) each, in the shapes that belong to the input's."""
        if self.y is not self.target:
            self.target[...] = self.y
        return self.output, states if self.batched else tuple(state[:, 0] for state in states)

    def shaped(self, values: Array) -> Array | PackedSequence:
        """Return values of every step, (T, B, size) or (N, size), in the shape that belongs to the input's."""
        if isinstance(self.output, PackedSequence):
            return self.output._replace(data=values)
        return values[:, 0] if not self.batched else values.swapaxes(0, 1) if self.batch_first else values


def dense(target: Array) -> Array:
    """Return `target` if kernels can write to it, whose last axis must be dense, else a new array of its shape."""
    if target.strides[-1] == target.itemsize and target.flags.aligned:
        return target
    return np.empty(target.shape, target.dtype)
