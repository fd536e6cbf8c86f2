"""Label every step of a sequence, and classify whole sequences: many-to-many and many-to-one, on brackets.

::

    python examples/sequence_labelling.py

The sequences are brackets, ``( ) [ ]``, of 4 to 30 symbols, in batches padded to the longest. Two networks learn from
examples alone, and are judged on others, drawn anew (of the short ones, some come again):

* a label for every step: which bracket has to close next, or that none is open. An LSTM, each of whose outputs a linear
  layer reads; padding is left out of the loss (``ignore_index``).
* one class for the whole sequence: is it balanced, or is a single bracket of it of the wrong kind? A GRU of two
  directions, whose last states a linear layer reads; ``lengths`` tells where each row ends.

In letters: T steps of the longest sequence, B sequences, H hidden units.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from nblstm import GRU, LSTM
from nblstm.training import Adam, Embedding, Linear, clip_grad_norm, cross_entropy

Array = npt.NDArray[Any]

SYMBOLS, PADDING, NOTHING_OPEN = "([)]", 4, 2
HIDDEN, BATCH, STEPS, LEARNING_RATE = 48, 64, 150, 0.01
LONGEST, DEEPEST = 30, 4


class Data(NamedTuple):
    """A batch of sequences with what is to be learned about them."""

    symbols: Array  # (T, B): places in SYMBOLS, or PADDING
    lengths: Array  # (B,)
    labels: Array  # (T, B): 0 or 1, the kind of the bracket to close next, NOTHING_OPEN; -100 for padding
    damaged: Array  # (B,): 1 if one bracket is of the wrong kind


def make_sequence(random: np.random.Generator, length: int) -> tuple[list[int], list[int]]:
    """Return balanced brackets and, for each, which has to close next."""
    symbols: list[int] = []
    labels, open_brackets = [], list[int]()
    for left in range(length, 0, -1):
        must_close, must_open = len(open_brackets) == min(left, DEEPEST), not open_brackets
        if must_open or (not must_close and random.random() < 0.5):
            open_brackets.append(int(random.integers(2)))
            symbols.append(open_brackets[-1])
        else:
            symbols.append(2 + open_brackets.pop())
        labels.append(open_brackets[-1] if open_brackets else NOTHING_OPEN)
    return symbols, labels


def make_batch(random: np.random.Generator, size: int = BATCH, damage: bool = True) -> Data:
    """Return sequences of random lengths; with `damage` every other one, on average, has a bracket of a wrong kind."""
    lengths = 2 * random.integers(2, LONGEST // 2 + 1, size)
    symbols = np.full((lengths.max(), size), PADDING)
    labels = np.full_like(symbols, -100)
    damaged = random.integers(2, size=size) if damage else np.zeros(size, np.int64)
    for row, length in enumerate(lengths):
        symbols[:length, row], labels[:length, row] = make_sequence(random, length)
        if damaged[row]:
            symbols[random.integers(length), row] ^= 1  # round becomes square and square round
    return Data(symbols, lengths, labels, damaged)


class Labeller:
    """An embedding, an LSTM and a linear layer on each of its outputs."""

    def __init__(self, seed: int) -> None:
        self.embedding = Embedding(len(SYMBOLS) + 1, 8, padding_idx=PADDING, seed=seed)
        self.lstm = LSTM(8, HIDDEN, seed=seed + 1)
        self.decoder = Linear(HIDDEN, 3, seed=seed + 2)
        self.layers = [self.embedding, self.lstm, self.decoder]

    def __call__(self, data: Data) -> Array:
        """Return the scores of the labels, (T, B, 3)."""
        output, _ = self.lstm(self.embedding(data.symbols), lengths=data.lengths)
        return self.decoder(output)

    def loss_and_gradients(self, data: Data) -> tuple[float, list[Any]]:
        """Return the loss of a batch and its gradients, an entry for each layer."""
        x, embedding_backward = self.embedding.vjp(data.symbols)
        (output, _), lstm_backward = self.lstm.vjp(x, lengths=data.lengths)
        scores, decoder_backward = self.decoder.vjp(output)
        loss, d_scores = cross_entropy(scores, data.labels)  # -100 does not count
        of_decoder = decoder_backward(d_scores)
        of_lstm = lstm_backward(d_output=of_decoder.input)
        return loss, [embedding_backward(of_lstm.input), of_lstm, of_decoder]

    def accuracy(self, data: Data) -> float:
        """Return the share of right labels."""
        counts = data.labels != -100
        return float((self(data).argmax(axis=2) == data.labels)[counts].mean())


class Classifier:
    """An embedding, a GRU of two directions and a linear layer on its last states."""

    def __init__(self, seed: int) -> None:
        self.embedding = Embedding(len(SYMBOLS) + 1, 8, padding_idx=PADDING, seed=seed)
        self.gru = GRU(8, HIDDEN, bidirectional=True, seed=seed + 1)
        self.decoder = Linear(2 * HIDDEN, 2, seed=seed + 2)
        self.layers = [self.embedding, self.gru, self.decoder]

    def __call__(self, data: Data) -> Array:
        """Return the scores of the classes, (B, 2)."""
        _, h_n = self.gru(self.embedding(data.symbols), lengths=data.lengths)
        return self.decoder(np.concatenate([h_n[0], h_n[1]], axis=1))

    def loss_and_gradients(self, data: Data) -> tuple[float, list[Any]]:
        """Return the loss of a batch and its gradients, an entry for each layer."""
        x, embedding_backward = self.embedding.vjp(data.symbols)
        (_, h_n), gru_backward = self.gru.vjp(x, lengths=data.lengths)
        scores, decoder_backward = self.decoder.vjp(np.concatenate([h_n[0], h_n[1]], axis=1))
        loss, d_scores = cross_entropy(scores, data.damaged)
        of_decoder = decoder_backward(d_scores)
        of_gru = gru_backward(d_state=np.stack(np.split(of_decoder.input, 2, axis=1)))
        return loss, [embedding_backward(of_gru.input), of_gru, of_decoder]

    def accuracy(self, data: Data) -> float:
        """Return the share of right classes."""
        return float((self(data).argmax(axis=1) == data.damaged).mean())


def train(model: Labeller | Classifier, damage: bool, steps: int, seed: int) -> None:
    """Train a model on batches that are drawn anew each time."""
    random, optimizer = np.random.default_rng([seed, 0]), Adam(model.layers, lr=LEARNING_RATE)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * (1 - step / steps)
        _, gradients = model.loss_and_gradients(make_batch(random, damage=damage))
        clip_grad_norm(gradients, max_norm=1.0)
        optimizer.step(gradients)


def label(steps: int = STEPS, seed: int = 0) -> tuple[float, float]:
    """Return a labeller's accuracy on 1,000 new sequences, and that of always saying the most frequent label."""
    model = Labeller(seed)
    train(model, False, steps, seed)
    data = make_batch(np.random.default_rng([seed, 1]), 1000, damage=False)
    counts = np.bincount(data.labels[data.labels >= 0])
    return model.accuracy(data), float(counts.max() / counts.sum())


def classify(steps: int = 2 * STEPS, seed: int = 0) -> tuple[float, float]:
    """Return a classifier's accuracy on 1,000 new sequences, and that of always saying the more frequent class."""
    model = Classifier(seed)
    train(model, True, steps, seed)
    data = make_batch(np.random.default_rng([seed, 1]), 1000)
    share = float(data.damaged.mean())
    return model.accuracy(data), max(share, 1 - share)


def main() -> None:
    """Train both, and say how good they are."""
    for task, found in (("which bracket closes next", label()), ("is one of them wrong", classify())):
        print(f"{task:26} right: {found[0]:6.1%}   always the most frequent answer: {found[1]:6.1%}")


if __name__ == "__main__":
    main()
