"""Where the rows of all steps of a call lie: the order in which the way back counts them, and their addresses."""

from __future__ import annotations

import numpy as np

from nblstm.arrays import Array, address_of
from nblstm.engine.run import SequenceLayout, deal


class RowOrder:
    """The N rows of all steps of a call, counted as a packed sequence does: step by step, longest first.

    That is the order of the sums over rows, so that these do not depend on how rows are split; their gradients lie
    slice by slice within each step, for the kernel's sake.

    begins  (T + 1,) where the rows of each step begin
    starts  (parts, T) where a slice's rows of each step begin among the gradients
    """

    def __init__(self, layout: SequenceLayout, parts: int) -> None:
        batch, steps = layout.batch, layout.steps
        self._layout = layout
        self.begins = np.zeros(steps + 1, np.int64)
        if layout.batch_sizes is None:
            self.begins[:] = np.arange(steps + 1) * batch
            own = [part * (batch // parts) + min(part, batch % parts) for part in range(parts)]
            self.starts = self.begins[:-1] + np.array(own, np.int64)[:, None]
            return
        sizes = layout.batch_sizes
        np.cumsum(sizes, out=self.begins[1:])
        alive, dealt = deal(sizes, batch, parts)
        self.starts = self.begins[:-1] + np.cumsum(alive, axis=0) - alive
        self._steps = np.repeat(np.arange(steps), sizes)
        self._rows = np.arange(len(self._steps)) - self.begins[self._steps]
        step, slice_row = np.nonzero(dealt < sizes[:, None])
        self._position = np.empty(len(step), np.int64)
        self._position[self.begins[step] + dealt[slice_row]] = np.arange(len(step))

    def rows_of(self, first: int, last: int, reverse: int) -> tuple[int, int]:
        """Return the range of the rows of steps number `first` to `last` - 1 in the order of a direction."""
        steps = len(self.begins) - 1
        if reverse:
            first, last = steps - last, steps - first
        return int(self.begins[first]), int(self.begins[last])

    def positions(self) -> Array:
        """Return where each row lies among the gradients, (N,)."""
        return np.arange(self.begins[-1]) if self._layout.batch_sizes is None else self._position

    def addresses(self, array: Array) -> Array:
        """Return the address of each row, (N,), in an x or y."""
        layout = self._layout
        if layout.packed:
            return address_of(array) + np.arange(self.begins[-1]) * array.strides[0]
        if layout.batch_sizes is None:
            return self._dense(array).reshape(-1)
        rows = self._rows if layout.rows is None else layout.rows[self._rows]
        found: Array = address_of(array) + self._steps * array.strides[0] + rows * array.strides[1]
        return found

    def _dense(self, array: Array) -> Array:
        steps, rows = (np.arange(n) * stride for n, stride in zip(array.shape[:2], array.strides[:2], strict=True))
        found: Array = address_of(array) + steps[:, None] + rows
        return found

    def addresses_before(self, h: Array, initial: Array, reverse: int) -> Array:
        """Return the address of each row of h one step before, in a direction's order; `initial` (B,) at its first."""
        layout = self._layout
        if layout.batch_sizes is None and not layout.packed:
            own, before = self._dense(h), np.empty((layout.steps, layout.batch), np.int64)
            before[1:], before[0] = own[:-1], initial
            if reverse:
                before[:-1], before[-1] = own[1:], initial
            return before.reshape(-1)
        sizes = np.diff(self.begins)
        steps, rows = np.repeat(np.arange(layout.steps), sizes), np.arange(self.begins[-1])
        rows -= self.begins[steps]
        earlier = steps + (1 if reverse else -1)
        inside = (earlier >= 0) & (earlier < layout.steps)
        earlier = np.where(inside, earlier, 0)
        known = inside & (rows < sizes[earlier])
        own = self.addresses(h)
        return np.where(known, own[np.where(known, self.begins[earlier] + rows, 0)], initial[rows])
