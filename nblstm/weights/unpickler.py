"""A reader of torch's pickles that can run no code.

A pickle is a program for a small stack machine. Python's own machine imports any name that the program gives (GLOBAL),
calls any callable (REDUCE, NEWOBJ, INST, OBJ) and hands any state to any object's ``__setstate__`` (BUILD), so that
loading an unknown pickle is running an unknown program. The machine here is another one, and has no such power:

* GLOBAL asks the caller what the whole (module, name) pair stands for. It imports nothing and follows no dots. What it
  can stand for are data, `Function` objects and `Class` objects.
* REDUCE calls a `Function` and nothing else, with as many arguments as that one takes. Its code is this package's, and
  checks each argument before it uses it.
* NEWOBJ makes an `Instance` of a `Class`. It holds attributes and has no methods; only TorchScript files have any.
* BUILD gives an OrderedDict the attribute ``_metadata``, as torch's state_dicts have it, or an `Instance` its
  attributes, and knows no other state.
* APPEND and SETITEM work on exactly a list, a dict or an OrderedDict, and a key is a plain value.
* Other opcodes than those that torch writes do not exist: INST, OBJ, EXT1, STACK_GLOBAL and so on are refused.

What comes out is looked over once more and consists of plain values and arrays alone. Each opcode takes a time and a
memory that its own bytes bound: nothing copies what a pickle can name twice.
"""

from __future__ import annotations

import io
import pickle  # the names of its opcodes; its machine is not used
import struct
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from nblstm.errors import WeightFileError
from nblstm.weights.source import BinaryFile, Source, shown

Name: TypeAlias = tuple[str, str]  # module, name
_LONGEST_NAME = 1000  # letters, of a module or of what is in it
_DEEPEST = 200  # containers inside containers, on the shortest way to each
_VALUES = (str, int, float, complex, type(None), np.ndarray, np.dtype)  # bool is an int
_SAVE_STATE_DICT = "No code is run: if this is a model saved whole, load it with torch and save model.state_dict()"


@dataclass(frozen=True)
class Function:
    """What a pickle may call, with `fewest` to `most` arguments.

    They may be anything that a pickle can make: `call` has to check each one.
    """

    call: Callable[..., object]
    fewest: int
    most: int


@dataclass(frozen=True)
class Refused:
    """What a pickle may not mention but an error can name: what it is, and what to save instead."""

    what: str
    hint: str


@dataclass(frozen=True)
class Class:
    """What a pickle may make instances of."""

    name: str


@dataclass(eq=False)
class Instance:
    """An object of a class that is not there: its attributes by name, in the order of the file."""

    of: Class
    attributes: dict[str, object] = field(default_factory=dict)


def unpickle(
    source: Source, program: BinaryFile, resolve: Callable[[Name], object], persistent: Callable[[object], object]
) -> Any:
    """Return the value that a pickle of protocol 2 describes; errors name `source`.

    The pickle begins where the file `program` stands, and `program` stands behind it afterwards. `resolve` says what a
    (module, name) pair stands for, None where it may not occur, and `persistent` makes what a persistent id stands for.
    Raises WeightFileError for a pickle that is damaged or that uses anything else.

    >>> import io, pickle
    >>> source = Source(io.BytesIO(), "example.pt", 0)
    >>> def read(value):
    ...     return unpickle(source, io.BytesIO(pickle.dumps(value, protocol=2)), {}.get, lambda _: None)
    >>> read({"step": 3, "loss": [0.5, None]})
    {'step': 3, 'loss': [0.5, None]}
    >>> read(print)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    nblstm.errors.WeightFileError: example.pt: expected tensors and plain values, got '__builtin__.print' ...
    """
    return _Machine(source, program, resolve, persistent).run()


class _Machine:
    """The state of a run. A mark puts the stack aside and starts an empty one; what uses the mark brings it back."""

    def __init__(
        self,
        source: Source,
        program: BinaryFile,
        resolve: Callable[[Name], object],
        persistent: Callable[[object], object],
    ) -> None:
        self.source = source
        self.program = program
        self.resolve = resolve
        self.persistent = persistent
        self.position = 0
        start = program.tell()
        self.size = program.seek(0, io.SEEK_END) - start
        program.seek(start)
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.states: set[int] = set()  # the ids of dicts that are the states of objects, which keep them

    def run(self) -> Any:
        while (opcode := self.take(1)) != pickle.STOP:
            step = _STEPS.get(opcode)
            if step is None:
                raise self.refuse("an opcode that torch writes", f"{opcode!r}")
            step(self)
        result = self.pop()
        self.check_is_data(result)
        return result

    def refuse(self, expected: str, got: str, hint: str = "") -> WeightFileError:
        return self.source.refuse(expected, f"{got} at byte {self.position} of its pickle", hint)

    # The program

    def take(self, count: int) -> bytes:
        self.position += count
        if self.position > self.size:
            raise self.refuse("a whole pickle", "its end")
        return self.program.read(count)

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def text(self, length: int) -> str:
        return self.decoded(self.take(length))

    def decoded(self, text: bytes) -> str:
        try:
            return text.decode("utf-8", "surrogatepass")  # torch.save writes lone surrogates in this way too
        except UnicodeDecodeError:
            raise self.refuse("text in UTF-8", "other bytes") from None

    def line(self) -> str:
        line = self.program.readline(_LONGEST_NAME)
        self.position += len(line)
        if not line.endswith(b"\n"):
            raise self.refuse("the end of a name", shown(line.decode("latin1")))
        return self.decoded(line[:-1])

    # The stack

    def push(self, value: object) -> None:
        self.stack.append(value)

    def top(self) -> Any:
        if not self.stack:
            raise self.refuse("a value on the stack", "none")
        return self.stack[-1]

    def last(self, count: int) -> list[Any]:
        if len(self.stack) < count:
            raise self.refuse(f"{count} values on the stack", str(len(self.stack)))
        values = self.stack[-count:]
        del self.stack[-count:]
        return values

    def pop(self) -> Any:
        return self.last(1)[0]

    def mark(self) -> None:
        self.marked.append(self.stack)
        self.stack = []

    def pop_mark(self) -> list[Any]:
        if not self.marked:
            raise self.refuse("a mark on the stack", "none")
        values, self.stack = self.stack, self.marked.pop()
        return values

    # The steps that are more than a push

    def protocol(self) -> None:
        if (protocol := self.take(1)[0]) != 2:
            raise self.refuse("pickle protocol 2, as torch.save writes", f"protocol {protocol}")

    def put(self, index: int) -> None:
        self.memo[index] = self.top()

    def get(self, index: int) -> None:
        if index not in self.memo:
            raise self.refuse("a value put into the memo before", f"number {index}")
        self.push(self.memo[index])

    def append(self, values: list[Any]) -> None:
        target = self.top()
        if type(target) is not list:
            raise self.refuse("a list to append to", type(target).__name__)
        target.extend(values)

    def set_items(self, values: list[Any]) -> None:
        target = self.top()
        if type(target) is not dict and type(target) is not OrderedDict:
            raise self.refuse("a dict to set items of", type(target).__name__)
        if len(values) % 2:
            raise self.refuse("a value for each key", "a key alone")
        for key, value in zip(values[::2], values[1::2], strict=True):
            if not _is_key(key):
                raise self.refuse("a string or a number below 2**63 as a key", type(key).__name__)
            target[key] = value

    def look_up(self) -> None:
        name = self.line(), self.line()
        found = self.resolve(name)
        if found is None:
            raise self.refuse("tensors and plain values", shown(".".join(name)), _SAVE_STATE_DICT)
        if isinstance(found, Refused):
            raise self.refuse("tensors and plain values", f"{found.what} ({shown('.'.join(name))})", found.hint)
        self.push(found)

    def persistent_value(self) -> None:
        self.push(self.persistent(self.pop()))

    def reduce(self) -> None:
        arguments, function = self.pop(), self.pop()
        if type(function) is Class:  # an enum of TorchScript, made of its value
            self.push(Instance(function, {"value": arguments}))
            return
        if type(function) is not Function:
            raise self.refuse("a function to call", type(function).__name__)
        if type(arguments) is not tuple or not function.fewest <= len(arguments) <= function.most:
            raise self.refuse(f"a tuple of {function.fewest} to {function.most} arguments", type(arguments).__name__)
        self.push(function.call(*arguments))

    def new_object(self) -> None:
        arguments, kind = self.pop(), self.pop()
        if not isinstance(kind, Class) or type(arguments) is not tuple or arguments:
            raise self.refuse("a class and no arguments", type(kind).__name__)
        self.push(Instance(kind))

    def build(self) -> None:
        state, target = self.pop(), self.top()
        if type(target) is Instance and type(state) is dict:
            # Of its own: a pickle can name one dict any number of times, and each time all its names are looked at.
            if target.attributes or id(state) in self.states or not all(type(name) is str for name in state):
                raise self.refuse("a state of its own, with names, for each object", "another")
            self.states.add(id(state))
            target.attributes = state
            return
        if type(target) is not OrderedDict or type(state) is not dict or not state.keys() <= {"_metadata"}:
            raise self.refuse("an OrderedDict and its _metadata", f"the state of {type(target).__name__}")
        vars(target).update(state)

    # The end

    def check_is_data(self, result: object) -> None:
        """Refuse a result in which anything but plain values and arrays is left, or that nests too deeply."""
        level: list[Any] = [result]
        seen: set[int] = set()
        for _ in range(_DEEPEST):
            below: list[Any] = []
            for value in level:
                if isinstance(value, (list, tuple, dict, Instance)):
                    if id(value) not in seen:
                        seen.add(id(value))
                        below.extend(_contents(value))
                elif not isinstance(value, _VALUES):
                    raise self.refuse("tensors and plain values", f"a bare {type(value).__name__}")
            if not below:
                return
            level = below
        raise self.refuse(f"at most {_DEEPEST} containers inside each other", "more")


def _is_key(value: object) -> bool:
    """Say whether a dict may have this key. Sizes are bounded: huge numbers can be chosen to collide in a dict."""
    return type(value) in (str, float, bool, type(None)) or (type(value) is int and -(2**63) <= value < 2**63)


def _contents(container: Any) -> list[Any]:
    if isinstance(container, Instance):
        return [*container.attributes.values()]
    if isinstance(container, dict):
        return [*container.values(), *getattr(container, "__dict__", {}).values()]
    return [*container]


_STEPS: dict[bytes, Callable[[_Machine], None]] = {
    pickle.PROTO: _Machine.protocol,
    pickle.NONE: lambda m: m.push(None),
    pickle.NEWTRUE: lambda m: m.push(True),
    pickle.NEWFALSE: lambda m: m.push(False),
    pickle.BININT: lambda m: m.push(m.number("<i")),
    pickle.BININT1: lambda m: m.push(m.number("<B")),
    pickle.BININT2: lambda m: m.push(m.number("<H")),
    pickle.LONG1: lambda m: m.push(int.from_bytes(m.take(m.number("<B")), "little", signed=True)),
    pickle.BINFLOAT: lambda m: m.push(m.number(">d")),
    pickle.BINUNICODE: lambda m: m.push(m.text(m.number("<I"))),
    pickle.SHORT_BINSTRING: lambda m: m.push(m.text(m.number("<B"))),  # of Python 2
    pickle.MARK: _Machine.mark,
    pickle.EMPTY_TUPLE: lambda m: m.push(()),
    pickle.TUPLE: lambda m: m.push(tuple(m.pop_mark())),
    pickle.TUPLE1: lambda m: m.push(tuple(m.last(1))),
    pickle.TUPLE2: lambda m: m.push(tuple(m.last(2))),
    pickle.TUPLE3: lambda m: m.push(tuple(m.last(3))),
    pickle.EMPTY_LIST: lambda m: m.push([]),
    pickle.APPEND: lambda m: m.append(m.last(1)),
    pickle.APPENDS: lambda m: m.append(m.pop_mark()),
    pickle.EMPTY_DICT: lambda m: m.push({}),
    pickle.SETITEM: lambda m: m.set_items(m.last(2)),
    pickle.SETITEMS: lambda m: m.set_items(m.pop_mark()),
    pickle.BINPUT: lambda m: m.put(m.number("<B")),
    pickle.LONG_BINPUT: lambda m: m.put(m.number("<I")),
    pickle.BINGET: lambda m: m.get(m.number("<B")),
    pickle.LONG_BINGET: lambda m: m.get(m.number("<I")),
    pickle.GLOBAL: _Machine.look_up,
    pickle.BINPERSID: _Machine.persistent_value,
    pickle.REDUCE: _Machine.reduce,
    pickle.NEWOBJ: _Machine.new_object,
    pickle.BUILD: _Machine.build,
}
