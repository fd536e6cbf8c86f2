"""Say how Chinese sentences are read aloud, with the weights of g2pM: a bidirectional LSTM on padded sentences.

::

    pip install --no-deps g2pM==0.1.2.5
    python examples/g2pm.py 他红了20年以后 他竟退出了大家的视线

g2pM (Park and Lee, https://arxiv.org/abs/2004.03136) has one reading for most characters in a dictionary, and a network
for those with several. The package keeps both in pickles; its code, which computes one sentence after the other in
NumPy, is not used here. In letters: B sentences, T characters in the longest one with a mark at either end.
"""

from __future__ import annotations

import argparse
import pickle
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

import nblstm
from nblstm.errors import message

Floats: TypeAlias = npt.NDArray[np.float32]

BEGIN, END, UNKNOWN = "시", "끝", "<UNK>"  # what g2pM's network was trained with
ARRAY_PARTS = {  # what the pickle of an array names
    ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],  # by now it lives in another module
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


class G2pM:
    """The dictionary and the network in g2pM's folder."""

    def __init__(self, folder: Path) -> None:
        self.readings: dict[str, list[str]] = read_pickle(folder / "digest_cedict.pkl")
        self.characters: dict[str, int] = read_pickle(folder / "char2idx.pkl")
        classes: dict[str, int] = read_pickle(folder / "class2idx.pkl")
        self.classes = sorted(classes, key=classes.__getitem__)  # 876 readings
        weights: dict[str, Floats] = read_pickle(folder / "np_ckpt.pkl")
        self.embedding = weights["embedding.weight"]  # (5398, 64)
        self.lstm = nblstm.LSTM.from_state_dict(weights, batch_first=True)
        self.hidden = weights["logit_layer.0.weight"], weights["logit_layer.0.bias"]  # (64, 64), (64,)
        self.output = weights["logit_layer.2.weight"], weights["logit_layer.2.bias"]  # (876, 64), (876,)

    def __call__(self, sentences: Sequence[str]) -> list[list[str]]:
        """Return the readings of each sentence: pinyin and tone for a Chinese character, any other as it is."""
        best = self.logits(sentences).argmax(axis=2)  # (B, T)
        return [
            [self.read(character, row[place]) for place, character in enumerate(sentence, start=1)]
            for sentence, row in zip(sentences, best, strict=True)
        ]

    def read(self, character: str, best: int) -> str:
        """Return the one reading of `character`, or that of class `best` if it has several."""
        readings = self.readings.get(character, [character])
        return readings[0] if len(readings) == 1 else self.classes[best]

    def logits(self, sentences: Sequence[str]) -> Floats:
        """Return how the network rates each reading for each character (B, T, 876); T counts the marks too."""
        lengths = [len(sentence) + 2 for sentence in sentences]
        numbers = np.zeros((len(sentences), max(lengths)), np.intp)  # (B, T)
        for row, sentence, length in zip(numbers, sentences, lengths, strict=True):
            row[:length] = [self.number(character) for character in (BEGIN, *sentence, END)]
        x, _ = self.lstm(self.embedding[numbers], lengths=lengths)  # (B, T, 64)
        x = np.maximum(linear(x, *self.hidden), np.float32(0))
        return linear(x, *self.output)

    def number(self, character: str) -> int:
        """Return the row of `character` in the embedding."""
        return self.characters.get(character, self.characters[UNKNOWN])


def linear(x: Floats, weight: Floats, bias: Floats) -> Floats:
    """Return x W^T + b."""
    result: Floats = x @ weight.T + bias
    return result


class _Unpickler(pickle.Unpickler):
    """Reads NumPy arrays and plain values, and refuses whatever else a pickle may ask for: it could run any code."""

    def find_class(self, module: str, name: str) -> Any:
        """Return what an array is made with."""
        if (module, name) in ARRAY_PARTS:
            return ARRAY_PARTS[module, name]
        raise pickle.UnpicklingError(message("pickle", "NumPy arrays and plain values", f"{module}.{name}"))


def read_pickle(path: Path) -> Any:
    """Return what is in a pickle of NumPy arrays and plain values."""
    with open(path, "rb") as file:
        return _Unpickler(file).load()


def find_folder() -> Path:
    """Return the folder of the installed g2pM, without importing it.

    Raises
    ------
    FileNotFoundError
        It is not installed.
    """
    try:
        return Path(str(distribution("g2pM").locate_file("g2pM")))
    except PackageNotFoundError as error:
        hint = "pip install --no-deps g2pM==0.1.2.5"
        raise FileNotFoundError(message("weights", "the package g2pM", "none installed", hint=hint)) from error


def main(arguments: list[str] | None = None) -> None:
    """Print the readings of the sentences of the command line, a line each."""
    parser = argparse.ArgumentParser(description="Say how Chinese sentences are read aloud.")
    parser.add_argument("sentences", metavar="SENTENCE", nargs="+")
    args = parser.parse_args(arguments)
    try:
        model = G2pM(find_folder())
    except (OSError, pickle.UnpicklingError) as error:
        sys.exit(f"g2pm: {error}")
    for readings in model(args.sentences):
        print(*readings)


if __name__ == "__main__":
    main()
