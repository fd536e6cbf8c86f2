"""What is measured: one list of cases for ``python -m nblstm bench``, asv and the documents.

A case is a network and an input to it. Which network it is says its `cell`, by the name of the equations. What is done
with them is its `kind`: the name of the method with which every engine answers it (nblstm.commands.benchmark.engines).
``inference`` is a forward pass, ``training`` a forward and a backward pass, to the gradients of all weights and of the
input, from a gradient of the output. ``cell`` and ``stream`` are a forward pass a step a call: of a cell, which is
handed the states and gives the next ones, or of a stream, which keeps them. A call is so short that the clock would
count; so the T steps of the input are timed as one, and times are told of one step.

An input of sequences of different lengths is `packed`: an engine that knows packed sequences gets one, packed before
the clock starts, and the others get the padded batch with the lengths. Only the valid steps count as operations.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from nblstm.arrays import Array
from nblstm.errors import message
from nblstm.kernels import cells

STEPS = ("cell", "stream")
KINDS = ("inference", "training", *STEPS)
CELLS = {"LSTM": cells.LSTM, "GRU": cells.GRU, "RNN_TANH": cells.RNN_TANH, "RNN_RELU": cells.RNN_RELU}
LENGTHS = ("linear", "random")
FORM = (
    f"T,B,I,H[,L][,bi][,P<size>][,f64][,{'|'.join(CELLS)}][,{'|'.join(f'packed-{name}' for name in LENGTHS)}]"
    f"[,{'|'.join(STEPS)}]"
)
_OPTION = re.compile(
    rf"(?P<bidirectional>bi)|P(?P<projection>[0-9]+)|(?P<dtype>f64)|(?P<cell>{'|'.join(CELLS)})"
    rf"|packed-(?P<packed>{'|'.join(LENGTHS)})|(?P<kind>{'|'.join(STEPS)})"
)


class NotOffered(Exception):
    """An engine has no such network; says what it lacks."""


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
    cell: str = "LSTM"  # one of CELLS
    packed: str = ""  # one of LENGTHS; empty: all rows have T steps
    kind: str = "inference"
    name: str = ""  # where it comes from

    @property
    def shape(self) -> str:
        """The sizes in short; those of one layer, one direction, no projection, float32 and LSTM go without saying.

        >>> Case(100, 1, 40, 256, layers=2, bidirectional=True, projection=64, dtype="float64").shape
        'T100 B1 I40 H256 L2 bi P64 f64'
        >>> Case(100, 16, 40, 256, cell="GRU", packed="linear").shape
        'T100 B16 I40 H256 GRU packed-linear'
        >>> Case(100, 1, 40, 256, kind="stream").shape
        'T100 B1 I40 H256 stream'
        """
        words = [f"T{self.steps}", f"B{self.batch}", f"I{self.inputs}", f"H{self.hidden}"]
        return " ".join(words + [f"L{self.layers}"] * (self.layers > 1) + self._options())

    @property
    def written(self) -> str:
        """The case as `parse_shapes` reads it.

        >>> Case(100, 1, 40, 256, bidirectional=True, dtype="float64").written
        '100,1,40,256,1,bi,f64'
        """
        sizes = [str(size) for size in (self.steps, self.batch, self.inputs, self.hidden, self.layers)]
        return ",".join(sizes + self._options())

    def _options(self) -> list[str]:
        words = ["bi"] * self.bidirectional + [f"P{self.projection}"] * (self.projection > 0)
        words += ["f64"] * (self.dtype == "float64") + [self.cell] * (self.cell != "LSTM")
        return words + [f"packed-{self.packed}"] * bool(self.packed) + [self.kind] * self.in_steps

    @property
    def in_steps(self) -> bool:
        """Whether every step is a call of its own: of a cell or a stream."""
        return self.kind in STEPS

    @property
    def calls(self) -> int:
        """The calls of the network that are timed as one: as many as there are steps, or one."""
        return self.steps if self.in_steps else 1

    @property
    def layer(self) -> str:
        """The name of the layer's class, in torch and in nblstm: LSTM, GRU or RNN."""
        return self.cell.partition("_")[0]

    @property
    def nonlinearity(self) -> str:
        """What an RNN has instead of gates, as its class takes it: tanh or relu; empty for the others."""
        return self.cell.partition("_")[2].lower()

    @property
    def directions(self) -> int:
        """D."""
        return 2 if self.bidirectional else 1

    @property
    def outputs(self) -> int:
        """The size of h: P, or H without a projection."""
        return self.projection or self.hidden

    @property
    def rows(self) -> int:
        """The rows of the weights of one layer and direction: those of all gates."""
        return CELLS[self.cell].gates * self.hidden

    def lengths(self) -> Array:
        """Return the valid steps of each row, (B,): at most T, which one of them has; the same in every process.

        ``linear``: in equal steps from T down, longest first. ``random``: 1 to T at random, in no order.

        >>> Case(100, 4, 40, 256, packed="linear").lengths().tolist()
        [100, 75, 50, 25]
        """
        if self.packed == "linear":
            return -(-self.steps * np.arange(self.batch, 0, -1) // self.batch)
        lengths = np.full(self.batch, self.steps)
        if self.packed == "random":
            lengths[:] = np.random.default_rng(2).integers(1, self.steps, self.batch, endpoint=True)
            lengths[lengths.argmax()] = self.steps
        return lengths

    def batch_sizes(self) -> Array:
        """Return the rows that are still running at each step, (T,).

        >>> Case(6, 3, 40, 256, packed="linear").batch_sizes().tolist()
        [3, 3, 2, 2, 1, 1]
        """
        sizes: Array = (self.lengths()[:, None] > np.arange(self.steps)).sum(axis=0)
        return sizes

    def matrices(self) -> Iterator[tuple[str, tuple[int, int]]]:
        """Yield the name and the shape of each weight matrix, in torch's order."""
        for layer in range(self.layers):
            inputs = self.outputs * self.directions if layer else self.inputs
            for end in ["", "_reverse"][: self.directions]:
                yield f"weight_ih_l{layer}{end}", (self.rows, inputs)
                yield f"weight_hh_l{layer}{end}", (self.rows, self.outputs)
                if self.projection:
                    yield f"weight_hr_l{layer}{end}", (self.projection, self.hidden)

    @property
    def flops(self) -> int:
        """Multiplications and additions over the whole input; those of the gates' functions are not counted.

        Training has three times those of inference: for each product two of its size follow on the way back, to the
        gradient of the weights and to that of what they were multiplied by.

        >>> Case(steps=10, batch=3, inputs=5, hidden=7).flops == 2 * 10 * 3 * (28 * 5 + 28 * 7)
        True
        """
        products = 3 if self.kind == "training" else 1
        numbers = sum(rows * columns for _, (rows, columns) in self.matrices())
        return products * 2 * int(self.lengths().sum()) * numbers

    def recurrent_flops(self) -> Array:
        """Return those of each step that have to wait for the step before or, on the way back, the one after, (T,)."""
        return self._turns * 2 * self._recurrent_numbers * self.batch_sizes()

    @property
    def _turns(self) -> int:
        """How often a call goes through time, step by step; all layers take a step together where that is a call."""
        return 1 if self.in_steps else (2 if self.kind == "training" else 1) * self.layers * self.directions

    @property
    def _recurrent_numbers(self) -> int:
        """The weights that every step of such a turn needs anew: where a step is a call, all there are."""
        if self.in_steps:
            return sum(rows * columns for _, (rows, columns) in self.matrices())
        return self.rows * self.outputs + self.projection * self.hidden

    @property
    def recurrent_bytes(self) -> int:
        """Those of one layer and direction, W_hh, and W_hr if there is one; of a step that is a call, all weights."""
        return self._recurrent_numbers * np.dtype(self.dtype).itemsize

    @property
    def streamed_shape(self) -> tuple[int, int]:
        """The terms and the outputs of a product with as many weights, but for those of a projection.

        >>> Case(100, 1, 40, 256).streamed_shape, Case(100, 1, 40, 256, layers=2, kind="stream").streamed_shape
        ((256, 1024), (404, 2048))
        """
        if not self.in_steps:
            return self.outputs, self.rows
        outputs = self.layers * self.rows
        return self._recurrent_numbers // outputs, outputs

    @property
    def streamed_bytes(self) -> int:
        """What a call reads of those weights for each step: h(t) has to be known before h(t + 1)."""
        return self._turns * self.recurrent_bytes

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
                arrays |= {f"bias_ih{ending}": draw(self.rows), f"bias_hh{ending}": draw(self.rows)}
        return arrays

    def input(self) -> Array:
        """Return the input (T, B, I), padded if there are `lengths`; the same in every process."""
        shape = (self.steps, self.batch, self.inputs)
        return np.random.default_rng(1).standard_normal(shape).astype(self.dtype)

    def output_gradient(self) -> Array:
        """Return the gradient of the output (T, B, D*P) that training begins with; the same in every process."""
        shape = (self.steps, self.batch, self.directions * self.outputs)
        return np.random.default_rng(3).standard_normal(shape).astype(self.dtype)


def parse_shapes(text: str) -> list[Case]:
    """Return the cases in `text`, separated by semicolons; ValueError for what is not one.

    >>> [case.shape for case in parse_shapes("25,1,512,512; 100,16,40,200,2,bi,f64,GRU,packed-random")]
    ['T25 B1 I512 H512', 'T100 B16 I40 H200 L2 bi f64 GRU packed-random']
    """
    return [_parse_shape(shape.strip()) for shape in text.split(";")]


def _parse_shape(text: str) -> Case:
    words = [word.strip() for word in text.split(",")]
    numbers = [int(word) for word in words if re.fullmatch(r"[0-9]+", word)]
    options = [_OPTION.fullmatch(word) for word in words[len(numbers) :]]
    found = {str(option.lastgroup): option[option.lastgroup] for option in options if option and option.lastgroup}
    if not (4 <= len(numbers) <= 5 and len(found) == len(options)):  # a number among the options is none of them
        hint = (
            "For example: 100,1,256,256 or 70,7,200,200,2,bi,P64,f64 or 100,16,256,256,GRU,packed-random "
            "or 100,1,64,64,stream"
        )
        raise ValueError(message("shape", FORM, repr(text), hint=hint))
    steps, batch, inputs, hidden, layers = [*numbers, 1][:5]
    case = Case(
        steps,
        batch,
        inputs,
        hidden,
        layers,
        bidirectional="bidirectional" in found,
        projection=int(found.get("projection", 0)),
        dtype="float64" if "dtype" in found else "float32",
        cell=found.get("cell", "LSTM"),
        packed=found.get("packed", ""),
        kind=found.get("kind", "inference"),
    )
    if min([*numbers, int(found.get("projection", 1))]) < 1:
        raise ValueError(message("shape", "sizes of at least 1", repr(text)))
    if case.projection >= case.hidden:
        raise ValueError(message("shape", f"P < {case.hidden}", repr(text), because=f"H={case.hidden}"))
    if case.projection and case.cell != "LSTM":
        raise ValueError(message("shape", "no P", repr(text), because="only an LSTM has a projection"))
    if case.in_steps and (case.bidirectional or case.packed):
        because = f"a {case.kind} goes forward, all rows together"
        raise ValueError(message("shape", "neither bi nor packed", repr(text), because=because))
    if case.kind == "cell" and (case.layers > 1 or case.projection):
        because = "a cell is one layer; a stream may have more"
        raise ValueError(message("shape", "neither L nor P", repr(text), because=because))
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
# What peers do by slower ways than an LSTM in float32 of rows of one length.
_SIZES = [(100, batch, size, size) for batch in (1, 32) for size in (128, 512)]
LAYERS = [
    *(Case(*sizes, cell="GRU", name="GRU") for sizes in _SIZES),
    *(Case(*sizes, cell="RNN_TANH", name="RNN") for sizes in _SIZES),
    Case(100, 32, 256, 256, cell="RNN_RELU", name="RNN"),
    *(Case(100, batch, 256, 512, projection=256, name="projection") for batch in (1, 32)),
    *(
        Case(100, batch, 256, 256, dtype="float64", cell=cell, name="float64")
        for cell in ("LSTM", "GRU")
        for batch in (1, 32)
    ),
    *(
        Case(100, 32, 256, 256, cell=cell, packed=lengths, name="packed")
        for cell in ("LSTM", "GRU", "RNN_TANH")
        for lengths in LENGTHS
    ),
]
GRID = [Case(100, batch, size, size) for size in (48, 128, 200, 256, 512, 1000) for batch in (1, 4, 16, 64)]
# Thinned like a chessboard, but for single rows.
_TRAINED = {1: (64, 128, 256, 512), 4: (64, 256), 16: (128, 512), 32: (64, 256), 64: (128, 512), 128: (64, 256)}
TRAINING = [
    replace(case, kind="training")
    for case in [
        *(Case(100, batch, size, size, name="LSTM") for batch, sizes in _TRAINED.items() for size in sizes),
        *(Case(25, batch, 1024, 1024, name="LSTM, large") for batch in (4, 64)),
        *(Case(100, batch, 256, 512, projection=256, name="projection") for batch in (1, 32)),
        Case(100, 16, 256, 256, bidirectional=True, name="2 directions"),
        Case(35, 20, 650, 650, layers=2, name="2 layers"),
        *(Case(100, batch, 256, 256, cell="GRU", name="GRU") for batch in (1, 32)),
        Case(100, 32, 256, 256, cell="RNN_TANH", name="RNN"),
        Case(100, 16, 256, 256, dtype="float64", name="float64"),
    ]
]
# A step a call. The means of the LSTMs in single rows are what the latency of the project is judged by.
_LSTM_SIZES = (32, 64, 128, 256)
STEP_CASES = [
    Case(100, batch, size, size, layers, cell=cell, kind=kind, name=name)
    for name, kind, cell, batch, layers, sizes in [
        ("LSTM cell", "cell", "LSTM", 1, 1, _LSTM_SIZES),
        ("LSTM stream", "stream", "LSTM", 1, 1, _LSTM_SIZES),
        ("LSTM stream, 2 layers", "stream", "LSTM", 1, 2, (64, 256)),
        ("LSTM cell, 32 rows", "cell", "LSTM", 32, 1, (64, 256)),
        ("GRU cell", "cell", "GRU", 1, 1, (64, 256)),
        ("GRU stream", "stream", "GRU", 1, 1, (64, 256)),
        ("RNN cell", "cell", "RNN_TANH", 1, 1, (64, 256)),
        ("RNN stream", "stream", "RNN_TANH", 1, 1, (64, 256)),
    ]
    for size in sizes
]
# One of each sort, all of them short.
SMALL = [ODD[0], SERVER[2], SERVER[3], NETWORKS[1], NETWORKS[2], VARIANTS[0], VARIANTS[2], VARIANTS[4], VARIANTS[6]]

SETS = {
    "standard": SERVER + NETWORKS + ODD + VARIANTS,
    "server": SERVER,
    "networks": NETWORKS,
    "odd": ODD,
    "variants": VARIANTS,
    "layers": LAYERS,
    "steps": STEP_CASES,
    "grid": GRID,
    "small": SMALL,
}
