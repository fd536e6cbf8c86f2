"""What is measured: one list of cases for ``python -m nblstm bench``, asv and the documents.

A case is a network and an input to it. What is done with them is its `kind`: the name of the method with which every
engine answers it (nblstm.commands.benchmark.engines).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from nblstm.arrays import Array
from nblstm.errors import message

KINDS = ("inference",)
_FORM = "T,B,I,H[,L][,bi][,P<size>][,f64]"


@dataclass(frozen=True)
class Case:
    """A network, the shape of its input, and what is done with them."""

    steps: int  # T
    batch: int  # B
    inputs: int  # I
    hidden: int  # H
    layers: int = 1  # L
    bidirectional: bool = False
    projection: int = 0  # P; 0: none
    dtype: str = "float32"
    kind: str = "inference"
    name: str = ""  # where it comes from

    @property
    def shape(self) -> str:
        """The sizes in short; those of one layer, one direction, no projection and float32 go without saying.

        >>> Case(100, 1, 40, 256, layers=2, bidirectional=True, projection=64, dtype="float64").shape
        'T100 B1 I40 H256 L2 bi P64 f64'
        """
        words = [f"T{self.steps}", f"B{self.batch}", f"I{self.inputs}", f"H{self.hidden}"]
        words += [f"L{self.layers}"] * (self.layers > 1) + ["bi"] * self.bidirectional
        words += [f"P{self.projection}"] * (self.projection > 0) + ["f64"] * (self.dtype == "float64")
        return " ".join(words)

    @property
    def written(self) -> str:
        """The case as `parse_shapes` reads it.

        >>> Case(100, 1, 40, 256, bidirectional=True, dtype="float64").written
        '100,1,40,256,1,bi,f64'
        """
        words = [str(size) for size in (self.steps, self.batch, self.inputs, self.hidden, self.layers)]
        words += ["bi"] * self.bidirectional + [f"P{self.projection}"] * (self.projection > 0)
        return ",".join(words + ["f64"] * (self.dtype == "float64"))

    @property
    def directions(self) -> int:
        """D."""
        return 2 if self.bidirectional else 1

    @property
    def outputs(self) -> int:
        """The size of h: P, or H without a projection."""
        return self.projection or self.hidden

    def matrices(self) -> Iterator[tuple[str, tuple[int, int]]]:
        """Yield the name and the shape of each weight matrix, in torch's order."""
        for layer in range(self.layers):
            inputs = self.outputs * self.directions if layer else self.inputs
            for end in ["", "_reverse"][: self.directions]:
                yield f"weight_ih_l{layer}{end}", (4 * self.hidden, inputs)
                yield f"weight_hh_l{layer}{end}", (4 * self.hidden, self.outputs)
                if self.projection:
                    yield f"weight_hr_l{layer}{end}", (self.projection, self.hidden)

    @property
    def flops(self) -> int:
        """Multiplications and additions of one call; those of the gates' functions are not counted.

        >>> Case(steps=10, batch=3, inputs=5, hidden=7).flops == 2 * 10 * 3 * (28 * 5 + 28 * 7)
        True
        """
        return 2 * self.steps * self.batch * sum(rows * columns for _, (rows, columns) in self.matrices())

    @property
    def recurrent_flops(self) -> int:
        """Those of them that have to wait for the step before."""
        return 2 * self.steps * self.batch * self.layers * self.directions * self._recurrent_numbers

    @property
    def _recurrent_numbers(self) -> int:
        return 4 * self.hidden * self.outputs + self.projection * self.hidden

    @property
    def recurrent_bytes(self) -> int:
        """The weights of one layer and direction that every step needs anew: W_hh, and W_hr if there is one."""
        return self._recurrent_numbers * np.dtype(self.dtype).itemsize

    @property
    def streamed_bytes(self) -> int:
        """What a call reads of those weights if it reads them once a step: h(t) has to be known before h(t + 1)."""
        return self.steps * self.layers * self.directions * self.recurrent_bytes

    def parameters(self) -> dict[str, Array]:
        """Return the weights by torch's names; the same ones in every process."""
        random = np.random.default_rng(0)
        bound = 1 / np.sqrt(self.hidden)

        def draw(*shape: int) -> Array:
            return random.uniform(-bound, bound, shape).astype(self.dtype)

        arrays: dict[str, Array] = {}
        for name, shape in self.matrices():
            arrays[name] = draw(*shape)
            if name.startswith("weight_hh"):
                ending = name.removeprefix("weight_hh")
                arrays |= {f"bias_ih{ending}": draw(4 * self.hidden), f"bias_hh{ending}": draw(4 * self.hidden)}
        return arrays

    def input(self) -> Array:
        """Return the input (T, B, I); the same in every process."""
        shape = (self.steps, self.batch, self.inputs)
        return np.random.default_rng(1).standard_normal(shape).astype(self.dtype)


def parse_shapes(text: str) -> list[Case]:
    """Return the cases in `text`, separated by semicolons; ValueError for what is not one.

    >>> [case.shape for case in parse_shapes("25,1,512,512; 100,16,40,200,2,bi,P64,f64")]
    ['T25 B1 I512 H512', 'T100 B16 I40 H200 L2 bi P64 f64']
    """
    return [_parse_shape(shape.strip()) for shape in text.split(";")]


def _parse_shape(text: str) -> Case:
    words = [word.strip() for word in text.split(",")]
    numbers = [int(word) for word in words if re.fullmatch(r"[0-9]+", word)]
    options = words[len(numbers) :]
    sizes_first = not any(re.fullmatch(r"[0-9]+", word) for word in options)
    known = all(re.fullmatch(r"bi|P[0-9]+|f64", option) for option in options)
    if not (sizes_first and known and 4 <= len(numbers) <= 5 and len({word[0] for word in options}) == len(options)):
        hint = "For example: 100,1,256,256 or 70,7,200,200,2,bi,P64,f64"
        raise ValueError(message("shape", _FORM, repr(text), hint=hint))
    projections = [int(option[1:]) for option in options if option[0] == "P"]
    steps, batch, inputs, hidden, layers = [*numbers, 1][:5]
    dtype = "float64" if "f64" in options else "float32"
    case = Case(steps, batch, inputs, hidden, layers, "bi" in options, sum(projections), dtype)
    if min([*numbers, *projections]) < 1:
        raise ValueError(message("shape", "sizes of at least 1", repr(text)))
    if case.projection >= case.hidden:
        raise ValueError(message("shape", f"P < {case.hidden}", repr(text), because=f"H={case.hidden}"))
    return case


# S. Narang and G. Diamos, DeepBench, 2017: the LSTMs of its inference server set.
SERVER = [
    Case(steps, batch, size, size, name="DeepBench")
    for size, steps in [(256, 150), (512, 25), (1024, 25), (1536, 50)]
    for batch in (1, 2, 4)
]
# Networks after which oneDNN's own benchmark is modelled, and the encoder of MLPerf's RNN-T at half its width.
NETWORKS = [
    Case(50, 1, 500, 500, name="oneDNN: pytorch"),
    Case(50, 64, 500, 500, name="oneDNN: pytorch"),
    Case(629, 1, 128, 128, name="oneDNN: paddle"),
    Case(30, 1, 1024, 1024, layers=2, name="GNMT, 2 layers"),
    Case(25, 64, 1024, 1024, name="GNMT, a batch"),
    Case(100, 1, 240, 512, layers=2, name="RNN-T, halved"),
]
ODD = [Case(100, 1, size, size, name="odd size") for size in (48, 90, 200, 300, 650, 1000)]
VARIANTS = [
    Case(70, 7, 200, 200, layers=2, name="2 layers"),
    Case(35, 20, 650, 650, layers=2, name="2 layers"),
    Case(100, 1, 256, 256, bidirectional=True, name="2 directions"),
    Case(100, 16, 256, 256, bidirectional=True, name="2 directions"),
    Case(100, 1, 256, 512, projection=256, name="projection"),
    Case(100, 16, 256, 512, projection=256, name="projection"),
    Case(100, 1, 256, 256, dtype="float64", name="float64"),
    Case(100, 16, 256, 256, dtype="float64", name="float64"),
]
GRID = [Case(100, batch, size, size) for size in (48, 128, 200, 256, 512, 1000) for batch in (1, 4, 16, 64)]
# One of each sort, all of them short.
SMALL = [ODD[0], SERVER[2], SERVER[3], NETWORKS[1], NETWORKS[2], VARIANTS[0], VARIANTS[2], VARIANTS[4], VARIANTS[6]]

SETS = {
    "standard": SERVER + NETWORKS + ODD + VARIANTS,
    "server": SERVER,
    "networks": NETWORKS,
    "odd": ODD,
    "variants": VARIANTS,
    "grid": GRID,
    "small": SMALL,
}
