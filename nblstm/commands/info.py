"""``python -m nblstm info``: what nblstm runs on, or with a file which weights are in it and how they are loaded.

It compiles nothing and starts no threads.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
from pathlib import Path

import llvmlite.binding
import numba

from nblstm import __version__, get_num_threads, load
from nblstm.commands.timing import is_installed
from nblstm.commands.weight_report import refused, report, size_text
from nblstm.kernels import policy
from nblstm.kernels.disk_cache import cache_folder

PEERS = ("torch", "onnxruntime", "openvino")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument("file", nargs="?", metavar="FILE", help="a weight file of any kind that nblstm.load reads")


def run(args: argparse.Namespace) -> int:
    """Print a line for each fact, or the report on a file; the exit status is 2 if that is no weight file."""
    if args.file is not None:
        try:
            print(report(args.file, load(args.file)))
        except (OSError, ValueError) as error:
            return refused("info", error)
        return 0
    facts = {
        "nblstm": f"{__version__} in {Path(policy.__file__).parent.parent}",
        "Python": f"{platform.python_version()} on {platform.platform()}",
        **{name: _version(name) for name in ("numba", "llvmlite", "numpy")},
        "CPU": cpu(),
        "threads": f"{get_num_threads()} a call at most, of {os.cpu_count()} in the machine",
        "threading layer": threading_layer(),
        "kernel cache": kernel_cache(),
        "peers": ", ".join(f"{name} {_version(name)}" for name in PEERS),
    }
    for name, fact in facts.items():
        print(f"{name:16} {fact}")
    return 0


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def cpu() -> str:
    """Return the CPU that kernels are compiled for, and the vectors that they use."""
    multiply_add = "with" if policy.HAS_FMA else "without"
    name = numba.config.CPU_NAME or llvmlite.binding.get_host_cpu_name()
    return f"{name}: vectors of {8 * policy.VECTOR_BYTES} bits, {multiply_add} fused multiply-add"


def threading_layer() -> str:
    """Return which of Numba's threading layers is asked for, and which are there: nblstm needs none of them."""
    pools = {"tbb": "tbbpool", "omp": "omppool", "workqueue": "workqueue"}
    present = [name for name, module in pools.items() if is_installed(f"numba.np.ufunc.{module}")]
    asked = str(numba.config.THREADING_LAYER)
    return f"none, nblstm's threads are its own; Numba's for your code: {asked}, of {', '.join(present)}"


def kernel_cache() -> str:
    """Return where compiled kernels are kept, and how many and how large they are."""
    folder = cache_folder()
    if folder is None:
        return "none: there is no folder to write to; set NUMBA_CACHE_DIR"
    entries = list(Path(folder).glob("*.nbc"))
    size = size_text(sum(entry.stat().st_size for entry in entries))
    return f"{folder}: {len(entries)} kernel{'s' * (len(entries) != 1)}, {size}"
