"""Symbols drawn from a language model, one at a time: each is read before the next one is drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from nblstm.arrays import Array


def drawn_tokens(
    scores_after: Callable[[int], Array], scores: Array, temperature: float, random: np.random.Generator
) -> Iterator[int]:
    """Draw tokens without end: the first from `scores` (V,), each further one from those after the last."""
    while True:
        token = _draw(scores.astype(np.float64), temperature, random)
        yield token
        scores = scores_after(token)


def _draw(scores: Array, temperature: float, random: np.random.Generator) -> int:
    """Return a token with the probability that its score has in a softmax."""
    if temperature == 0:
        return int(scores.argmax())
    with np.errstate(all="ignore"):
        chances = np.exp((scores - scores.max()) / temperature)
        return int(random.choice(len(chances), p=chances / chances.sum()))
