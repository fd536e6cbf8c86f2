"""``python -m nblstm COMMAND``.

A command is a file in `nblstm.commands` with ``add_arguments(parser)``, ``run(args)`` that returns the exit status, and
a docstring whose first line says, after a colon, what the command does.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from nblstm import __version__
from nblstm.commands import bench, convert, demo, info, warmup

COMMANDS = {"demo": demo, "info": info, "warmup": warmup, "convert": convert, "bench": bench}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that `arguments` (those of the process, if None) name and return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m nblstm", description="LSTM networks on the CPU, compiled by Numba."
    )
    parser.add_argument("--version", action="version", version=f"nblstm {__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND")
    for name, command in COMMANDS.items():
        summary = str(command.__doc__).partition(": ")[2].partition("\n")[0]
        subparser = subparsers.add_parser(name, help=summary, description=summary)
        command.add_arguments(subparser)
        subparser.set_defaults(run=command.run)
    args = parser.parse_args(arguments)
    if not hasattr(args, "run"):
        parser.print_help()
        return 0
    return int(args.run(args))


def _main_in_a_pipe() -> int:
    """Run `main`; a reader that has heard enough, like ``head``, ends the command without a word."""
    try:
        try:
            return main()
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # What is left in the buffer would fail again when Python flushes it at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + 13  # what a shell reports of a program that SIGPIPE ended


if __name__ == "__main__":
    sys.exit(_main_in_a_pipe())
