"""Symbols drawn from a language model, one at a time: each is read before the next one is drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from nblstm.arrays import Array


def drawn_tokens(
    model: Callable[[list[int], Any], tuple[Array, Any]],
    logits: Array,
    state: Any,
    temperature: float,
    random: np.random.Generator,
) -> Iterator[int]:
    """Draw tokens without end, from what the model returned for the prompt: scores (T, V) and states."""
    while True:
        token = _draw(logits[-1].astype(np.float64), temperature, random)
        yield token
        logits, state = model([token], state)


def _draw(scores: Array, temperature: float, random: np.random.Generator) -> int:
    """Return a token with the probability that its score has in a softmax."""
    if temperature == 0:
        return int(scores.argmax())
    with np.errstate(all="ignore"):
        chances = np.exp((scores - scores.max()) / temperature)
        return int(random.choice(len(chances), p=chances / chances.sum()))
