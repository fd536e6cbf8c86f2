"""``python -m nblstm convert``: write the tensors of any weight file as .safetensors or .npz.

Tensors of nested containers get names with dots, as nblstm.commands.weight_report says; values that are no tensors are
left out. It reads as `nblstm.load` does, so without running code from the file, and a bfloat16 becomes a float32.
"""

from __future__ import annotations

import argparse
import os
from collections import Counter
from collections.abc import Mapping

from nblstm import load, save
from nblstm.arrays import Array
from nblstm.commands.weight_report import named_tensors, no_tensors, printable, refused, size_text, summary, total_size
from nblstm.errors import message
from nblstm.weights.source import shown

# A small file may give one tensor any number of names, and each is written out. A shared layer is usual.
_MOST_NAMES = 8
_MOST_COPIED = 2**30  # bytes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    prefix = "only tensors whose names begin with P, less that; a dot after P may be left out"
    parser.add_argument("source", metavar="IN", help="a weight file of any kind that nblstm.load reads")
    parser.add_argument("target", metavar="OUT", help="a name that ends in .safetensors or .npz")
    parser.add_argument("--prefix", default="", metavar="P", help=prefix)
    parser.add_argument("--force", action="store_true", help="write over a file that is there")


def run(args: argparse.Namespace) -> int:
    """Write OUT and say what was written; the exit status is 2 if that cannot be, and then OUT is as it was."""
    try:
        if os.path.lexists(args.target) and not args.force:
            raise FileExistsError(message(args.target, "a new file", "one that exists", hint="--force overwrites it"))
        tensors, others = named_tensors(load(args.source))
        kept = _under(tensors, args.prefix)
        if not kept or "" in kept:
            raise ValueError(message(args.source, "tensors with names", "one without" if kept else "none"))
        _check_copies(args.source, kept)
        save(args.target, kept)
    except (OSError, TypeError, ValueError) as error:
        return refused("convert", error)
    print(f"{args.target}: {summary(kept)}")
    if count := len(tensors) - len(kept):
        print(f"left out: {count} tensor{'s of other prefixes' if count > 1 else ' of another prefix'}")
    if others:
        print(f"left out: {no_tensors(others)}")
    return 0


def _check_copies(source: str, tensors: Mapping[str, Array]) -> None:
    """Raise ValueError if many names stand for the same tensors, so that they take a giant multiple of the file."""
    once = total_size({id(array): array for array in tensors.values()}.values())
    whole = total_size(tensors.values())
    if whole <= _MOST_NAMES * once or whole - once <= _MOST_COPIED:
        return
    names = Counter(id(array) for array in tensors.values())
    worst = max(tensors, key=lambda name: names[id(tensors[name])] * tensors[name].nbytes)
    expected = f"at most {_MOST_NAMES} names for a tensor, or {size_text(_MOST_COPIED)} of copies"
    got = f"{names[id(tensors[worst])]} names for {shown(worst)} and {size_text(whole - once)}"
    raise ValueError(message(source, expected, got, hint="Choose a part with --prefix"))


def _under(tensors: Mapping[str, Array], prefix: str) -> Mapping[str, Array]:
    """Return the tensors whose names begin with `prefix`, without it; a whole component comes before a part of one."""
    if not prefix:
        return tensors
    for start in (f"{prefix}.", prefix):
        if found := {name[len(start) :]: array for name, array in tensors.items() if name.startswith(start)}:
            return found
    beginnings = dict.fromkeys(printable(name.partition(".")[0]) for name in tensors)
    expected = f"the beginning of a name, such as {', '.join(list(beginnings)[:8])}"
    raise ValueError(message("--prefix", expected, repr(prefix)))
