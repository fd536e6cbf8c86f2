"""Reads the weights in an archive of torch.jit.save (TorchScript), without torch and without its code.

The archive is one of torch.save with some more members. ``data.pkl`` holds the module: objects of classes
``__torch__.….Name`` with their attributes, which are numbers, tensors and further modules. What a class is stands in
``code/__torch__/….py``, in a language like Python; the beginning of a class says which attributes are in the
state_dict, and the rest, which is the program, is skipped::

    class LSTM(Module):
      __parameters__ = ["weight_ih_l0", ]
      __buffers__ = ["scale", ]
      __annotations__["0"] = __torch__.torch.nn.modules.linear.Linear
      weight_ih_l0 : Tensor
      scale : Tensor
      def forward(self: __torch__.LSTM, …
"""

from __future__ import annotations

import re
from collections import OrderedDict
from dataclasses import dataclass
from typing import TypeGuard

import numpy as np

from nblstm.arrays import Array
from nblstm.errors import WeightFileError
from nblstm.weights.elements import Elements
from nblstm.weights.source import Source, shown
from nblstm.weights.tensors import StorageType
from nblstm.weights.torch_file import read_torch_file
from nblstm.weights.unpickler import Class, Function, Instance, Name, Refused
from nblstm.weights.zip_archive import ZipArchive

_MODULE = re.compile(r"__torch__(\.[^\W\d]\w*)*")
_CLASS = re.compile(r"class (\w+)(?:\((\w+)\))?:")
_LIST = re.compile(r'  __(parameters|buffers)__ = \[((?:"[^"\\]*", )*)\]')
_TENSOR = re.compile(r'  (?:(\w+) : |__annotations__\["([^"\\]*)"\] = )Tensor')
_OWN_STATE = "  def __setstate__("
_NOT_QUANTISED = "Save the state_dict() of the model as it was before"


def is_torchscript(archive: ZipArchive, root: str) -> bool:
    """Say whether an archive that torch wrote is of torch.jit.save rather than of torch.save."""
    return f"{root}/constants.pkl" in archive.names


def read_torchscript(source: Source, archive: ZipArchive, root: str, elements: Elements) -> OrderedDict[str, Array]:
    """Return what ``torch.jit.load(file).state_dict()`` gives: the parameters and buffers of a module by name.

    Buffers that are not persistent are among them, since TorchScript does not tell them apart. Constants, into which
    torch.jit.freeze turns the weights, are not. Raises WeightFileError.
    """
    classes = _Classes(source, archive, root, elements)
    module = read_torch_file(source, archive, root, elements, classes.resolve)
    if not isinstance(module, Instance) or not isinstance(module.of, _Module):
        raise source.refuse("a module in a TorchScript archive", type(module).__name__)
    state: OrderedDict[str, Array] = OrderedDict()
    # A module that is used at several places has a name at each; a few that use one another have any number of names
    allowance = 2**22 + 16 * source.size
    left = [("", module)]
    while left:
        prefix, module = left.pop()
        allowance -= len(prefix) + sum(map(len, module.attributes)) + len(module.attributes)
        if allowance < 0:
            raise source.refuse("names of weights that fit the file", "more, of modules inside each other")
        state.update((prefix + name, tensor) for name, tensor in _weights(module))
        inner = [(f"{prefix}{name}.", value) for name, value in module.attributes.items() if _is_module(value)]
        left.extend(reversed(inner))
    return state


@dataclass(frozen=True)
class _Module(Class):
    """A module class: what is in the state_dict of its instances."""

    parameters: frozenset[str]
    buffers: frozenset[str]


def _is_module(value: object) -> TypeGuard[Instance]:
    return isinstance(value, Instance) and isinstance(value.of, _Module)


def _weights(module: Instance) -> list[tuple[str, Array]]:
    """Return the parameters and then the buffers that a module has itself; None stands for one that it has not."""
    assert isinstance(module.of, _Module)
    tensors = [(name, value) for name, value in module.attributes.items() if isinstance(value, np.ndarray)]
    return [
        *((name, tensor) for name, tensor in tensors if name in module.of.parameters),
        *((name, tensor) for name, tensor in tensors if name in module.of.buffers),
    ]


class _Classes:
    """The classes of an archive, read from the text of its code as far as it says what their attributes are."""

    def __init__(self, source: Source, archive: ZipArchive, root: str, elements: Elements) -> None:
        self.source = source
        self.archive = archive
        self.root = root
        self.names = set(archive.names)
        self.read: dict[str, dict[str, object]] = {}
        self.others: dict[Name, object] = {
            # torch.save writes such a storage without a type
            **{
                ("torch", element.name.replace("uint", "UInt") + "Storage"): StorageType(element)
                for element in elements
                if not element.storage
            },
            ("torch.jit._pickle", "restore_type_tag"): Function(self.container, 2, 2),
            ("torch.jit._pickle", "build_intlist"): Function(self.container, 1, 1),
            ("torch.jit._pickle", "build_doublelist"): Function(self.container, 1, 1),
            ("torch.jit._pickle", "build_boollist"): Function(self.container, 1, 1),
            ("torch.jit._pickle", "build_tensorlist"): Function(self.container, 1, 1),
        }

    def resolve(self, name: Name) -> object:
        """Return what a name in the pickle stands for: a class that the code of the archive has, or a container."""
        module, attribute = name
        if module.startswith("__torch__.torch.classes."):
            return Refused("an object of torch's own code, as in quantised layers", _NOT_QUANTISED)
        member = f"{self.root}/code/{module.replace('.', '/')}.py"
        if not _MODULE.fullmatch(module) or member not in self.names:
            return self.others.get(name)
        if member not in self.read:
            self.read[member] = self._classes(member, module)
        return self.read[member].get(attribute)

    def container(self, value: object, tag: object = "") -> object:
        """Return a list or dict, which TorchScript writes together with its type."""
        if type(value) not in (list, dict) or type(tag) is not str:
            raise self.source.refuse("a list or a dict and the name of its type", type(value).__name__)
        return value

    def _classes(self, member: str, module: str) -> dict[str, object]:
        """Return the classes in one text of code by name."""
        classes: dict[str, object] = {}
        text = self.archive.read_program(member).tobytes().decode("utf-8", "replace")
        for part in re.split(r"^(?=class )", text, flags=re.MULTILINE):
            if found := _CLASS.match(part):
                if found[1] in classes:
                    raise self._damaged(member, f"two classes {found[1]}")
                classes[found[1]] = self._class(member, f"{module}.{found[1]}", found[2], part)
        return classes

    def _class(self, member: str, name: str, base: str | None, text: str) -> object:
        """Return one class of the text, from ``class`` to the beginning of the next."""
        lines = text.split("\n")
        if any(line.startswith(_OWN_STATE) for line in lines):
            return Refused("a class that only its own code can load, as quantised layers are", _NOT_QUANTISED)
        if base != "Module":
            return Class(name)
        lists: dict[str, frozenset[str]] = {}
        tensors: set[str] = set()
        for line in lines[1:]:
            if line.startswith("  def ") or (line and not line.startswith("  ")):
                break
            if found := _LIST.fullmatch(line):
                if found[1] in lists:
                    raise self._damaged(member, f"two lists of {found[1]}")
                lists[found[1]] = frozenset(re.findall(r'"([^"]*)", ', found[2]))
            elif found := _TENSOR.fullmatch(line):
                tensors.add(found[1] or found[2])
        if "parameters" not in lists:
            raise self._damaged(member, f"a module {name} without a list of its parameters")
        # torch takes a buffer for one only where its type is Tensor, and knew no list of buffers before torch 1.6
        return _Module(name, lists["parameters"], lists.get("buffers", frozenset()) & tensors)

    def _damaged(self, member: str, what: str) -> WeightFileError:
        return self.source.refuse("code as torch.jit.save writes it", f"{shown(what)} in {shown(member)}")
