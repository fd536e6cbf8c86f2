"""``python -m nblstm warmup``: compile all kernels ahead of time, for a container image or the start of a service.

A line on standard error for each kernel as it becomes ready, and at the end where the cache is and how large. In a
Dockerfile, for layers in float32 that only run:

    ENV NUMBA_CACHE_DIR=/opt/nblstm-cache
    RUN python -m nblstm warmup --dtype float32

The image then starts without compiling, on CPUs of the kind that it was built on (`nblstm.warmup`), also where nothing
can be written.
"""

from __future__ import annotations

import argparse
import sys

from nblstm.commands.weight_report import size_text
from nblstm.engine.ahead import ReadyKernel, warmup
from nblstm.kernels import policy
from nblstm.kernels.disk_cache import cache_folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    which = "what the layers that are going to run compute in (default: all)"
    parser.add_argument("--dtype", choices=(*policy.DTYPES, "all"), default="all", help=which)
    training = "also what gradients, optimisers, losses and the layers of nblstm.training need"
    parser.add_argument("--training", action="store_true", help=training)


def run(args: argparse.Namespace) -> int:
    """Make the kernels ready; the exit status is 1 if they cannot be kept."""
    ready = warmup(policy.DTYPES if args.dtype == "all" else args.dtype, training=args.training, progress=_say)
    compiled = sum(not kernel.cached for kernel in ready)
    folder, size = cache_folder(), size_text(sum(kernel.size for kernel in ready))
    if folder is None or not all(kernel.size for kernel in ready):
        print("nblstm warmup: the kernels cannot be kept; set NUMBA_CACHE_DIR to a folder with room", file=sys.stderr)
        return 1
    print(f"{len(ready)} kernels, {compiled} of them compiled now, {size} in {folder}")
    return 0


def _say(kernel: ReadyKernel) -> None:
    how = "from the cache" if kernel.cached else "compiled"
    print(f"{kernel.name:44} {kernel.seconds:6.2f} s  {size_text(kernel.size):>9}  {how}", file=sys.stderr, flush=True)
