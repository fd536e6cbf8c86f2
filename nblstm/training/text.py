"""Text as numbers: the vocabulary of its characters, and batches cut from it, in order or in windows at random.

A batch is a function of a seed and of the number of the training step, as a dropout mask is. So a run that was stopped
goes on where it was without a random state to keep.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar, NamedTuple

import numpy as np

from nblstm.arrays import Array, as_array, as_whole_number
from nblstm.errors import message
from nblstm.layers import checks


class Vocabulary:
    """The different characters of a text, numbered in the order of Unicode.

    Parameters
    ----------
    text : str
        Any text with all of them.

    Raises
    ------
    ValueError
        The text is empty.
    TypeError
        It is no str.

    Examples
    --------
    >>> vocabulary = Vocabulary("to be or not to be")
    >>> len(vocabulary), vocabulary.characters
    (7, ' benort')
    >>> vocabulary.encode("note")
    array([3, 4, 6, 2])
    >>> vocabulary.decode([1, 2, 2])
    'bee'
    """

    def __init__(self, text: str) -> None:
        if not isinstance(text, str):
            raise TypeError(message("Vocabulary text", "a str", type(text).__name__))
        if not text:
            raise ValueError(message("Vocabulary text", "one character or more", "none"))
        self.characters = "".join(sorted(set(text)))

    def __len__(self) -> int:
        return len(self.characters)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.characters!r})"

    def encode(self, text: str) -> Array:
        """Return the numbers of the characters, (N,) int64. ValueError for one that is not in the vocabulary."""
        if not isinstance(text, str):
            raise TypeError(message("Vocabulary.encode text", "a str", type(text).__name__))
        known, points = _code_points(self.characters), _code_points(text)
        numbers = np.searchsorted(known, points).clip(max=len(known) - 1)
        unknown = np.flatnonzero(known[numbers] != points)
        if unknown.size:
            place = int(unknown[0])
            got = f"{text[place]!r} at place {place}"
            raise ValueError(message("Vocabulary.encode text", f"characters of {self.characters!r}", got))
        return numbers.astype(np.int64)

    def decode(self, numbers: Iterable[int]) -> str:
        """Return the text of these numbers. IndexError for one out of range."""
        places = [as_whole_number("Vocabulary.decode numbers", number) for number in numbers]
        for place in places:
            if not 0 <= place < len(self):
                raise IndexError(message("Vocabulary.decode numbers", f"0 ... {len(self) - 1}", place))
        return "".join(self.characters[place] for place in places)


def _code_points(text: str) -> Array:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")


class Batch(NamedTuple):
    """What a step of training reads: T steps of B rows of a text, and what comes after each."""

    tokens: Array  # (T, B) int64
    targets: Array  # (T, B) int64: the tokens one place further on
    begins: bool  # True: the rows begin anew, with fresh states; False: they go on where the last batch ended


class _Batches(ABC):
    """What both ways to cut a text have in common."""

    _CARRIES: ClassVar[bool]  # whether a batch goes on where the last one of its epoch ended

    def __init__(self, tokens: Any, batch_size: int, num_steps: int, *, seed: int = 0) -> None:
        name = type(self).__name__
        self.tokens = as_array(f"{name} tokens", tokens)
        if self.tokens.dtype.kind not in "iu":
            raise TypeError(message(f"{name} tokens", "whole numbers", f"dtype {self.tokens.dtype}"))
        if self.tokens.ndim != 1:
            raise ValueError(message(f"{name} tokens", "(N,)", self.tokens.shape))
        self.batch_size = checks.check_size(name, "batch_size", batch_size)
        self.num_steps = checks.check_size(name, "num_steps", num_steps)
        self.seed = as_whole_number(f"{name} seed", seed)
        if seed < 0:
            raise ValueError(message(f"{name} seed", "0 or more", seed))
        needed = batch_size * num_steps + 1
        if len(self.tokens) < needed:
            because = f"batch_size={batch_size} and num_steps={num_steps}"
            raise ValueError(message(f"{name} tokens", f"{needed} or more", len(self.tokens), because=because))
        self._count = self._batches_of_epoch()
        self._epoch: tuple[int, Array] = -1, np.empty((0, batch_size), np.int64)  # the last one used

    def __len__(self) -> int:
        """Return the number of batches of an epoch, a pass over the text."""
        return self._count

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self.tokens)} tokens, {self.batch_size}, {self.num_steps})"

    def __call__(self, step: int) -> Batch:
        """Return the batch of a step of training: 0 is the first of the first epoch, ``len`` that of the second."""
        argument = f"{type(self).__name__} step"
        if as_whole_number(argument, step) < 0:
            raise ValueError(message(argument, "0 or more", step))
        epoch, place = divmod(step, len(self))
        kept, rows = self._epoch
        if kept != epoch:
            rows = self._first_places(np.random.default_rng([self.seed, epoch]))
            self._epoch = epoch, rows
        places = rows[place] + np.arange(self.num_steps)[:, None]
        return Batch(self._taken(places), self._taken(places + 1), place == 0 or not self._CARRIES)

    @abstractmethod
    def _batches_of_epoch(self) -> int:
        """Return how many batches an epoch has."""

    @abstractmethod
    def _first_places(self, random: np.random.Generator) -> Array:
        """Return where in the text the rows of the batches of an epoch begin, (batches, B)."""

    def _offset(self, random: np.random.Generator, used: int) -> int:
        """Return how many tokens to leave out at the start of an epoch: below num_steps, and as far as there are."""
        return int(random.integers(min(self.num_steps, len(self.tokens) - used)))

    def _taken(self, places: Array) -> Array:
        return self.tokens[places].astype(np.int64)


class SequentialBatches(_Batches):
    """Cuts a text into B long stretches, read side by side and in order: each batch goes on where the last one ended.

    So the states can be carried from batch to batch. Each epoch leaves out another few tokens at the start.

    Parameters
    ----------
    tokens : (N,) array of whole numbers
        The text.
    batch_size : int
        B, how many stretches.
    num_steps : int
        T, how many steps of each a batch has.
    seed : int
        Determines what is left out.

    Raises
    ------
    ValueError
        The text is shorter than one batch, B T + 1; sizes below 1; tokens with more axes than one.
    TypeError
        Tokens that are no whole numbers, other arguments than these.

    Examples
    --------
    >>> import numpy as np
    >>> batches = SequentialBatches(np.arange(21), batch_size=2, num_steps=5)
    >>> len(batches)
    2
    >>> batches(0).tokens.T
    array([[ 0,  1,  2,  3,  4],
           [10, 11, 12, 13, 14]])
    >>> batches(1).targets.T, batches(1).begins
    (array([[ 6,  7,  8,  9, 10],
           [16, 17, 18, 19, 20]]), False)
    """

    _CARRIES = True

    def _batches_of_epoch(self) -> int:
        return (len(self.tokens) - 1) // (self.batch_size * self.num_steps)

    def _first_places(self, random: np.random.Generator) -> Array:
        length = len(self) * self.num_steps
        places = np.arange(len(self))[:, None] * self.num_steps + np.arange(self.batch_size) * length
        return np.asarray(places + self._offset(random, used=self.batch_size * length))


class RandomBatches(_Batches):
    """Cuts a text into windows of T steps, which each epoch takes in another random order; states begin anew in each.

    The arguments and errors are those of `SequentialBatches`. An epoch leaves out the windows that fill no batch, each
    time others.

    Examples
    --------
    >>> import numpy as np
    >>> batches = RandomBatches(np.arange(21), batch_size=2, num_steps=5)
    >>> sorted([*batches(0).tokens[0], *batches(1).tokens[0]]) == [0, 5, 10, 15]
    True
    >>> batches(1).begins
    True
    """

    _CARRIES = False

    def _batches_of_epoch(self) -> int:
        return (len(self.tokens) - 1) // self.num_steps // self.batch_size

    def _first_places(self, random: np.random.Generator) -> Array:
        windows = (len(self.tokens) - 1) // self.num_steps
        offset = self._offset(random, used=windows * self.num_steps)
        chosen = random.permutation(windows)[: len(self) * self.batch_size]
        return np.asarray(offset + chosen.reshape(len(self), self.batch_size) * self.num_steps)
