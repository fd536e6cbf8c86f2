"""What the tests of `vjp` share: gradients to ask with, and those of nblstm and of torch by the same names."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from cases import as_tuple, of_each

from nblstm.arrays import Array
from nblstm.engine.plan import Plan
from nblstm.kernels.job import ROWS, UNITS

PLANS = [Plan(ROWS, 1, 1), Plan(ROWS, 2, 2), Plan(ROWS, 3, 2), Plan(UNITS, 2, 2), Plan(UNITS, 3, 2)]


def gradients_of(output: Any, states: Any, seed: int, dtype: Any = None) -> tuple[Any, Any]:
    """Return random gradients by an output and states."""
    random = np.random.default_rng(seed)

    def one(array: Any) -> Any:
        return random.standard_normal(array.shape).astype(array.dtype if dtype is None else dtype)

    return of_each(one, output), of_each(one, states)


def flat(gradients: Any) -> dict[str, Any]:
    """Return the arrays of `Gradients` by name."""
    states = {f"hx[{n}]": state for n, state in enumerate(as_tuple(gradients.hx))}
    return {"input": gradients.input, **states, **gradients.parameters}


def torch_gradients(
    torch: Any, module: Any, x: Any, states: Any, asked: Iterable[tuple[Any, Array]]
) -> dict[str, Array]:
    """Return torch's gradients by the names of `flat`; `asked` pairs what `module` made with gradients by it."""
    total = sum((one * torch.tensor(gradient, dtype=one.dtype)).sum() for one, gradient in asked)
    total.backward()
    found = {"input": x, **{f"hx[{n}]": state for n, state in enumerate(as_tuple(states))}}
    found |= dict(module.named_parameters())
    return {name: np.zeros(t.shape) if t.grad is None else t.grad.numpy() for name, t in found.items()}
