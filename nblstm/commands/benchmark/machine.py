"""The machine under test, in the words of its makers where the system tells them."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path
from typing import Any

from nblstm.commands import info

_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def describe(threads: int) -> dict[str, Any]:
    """Return the facts that a figure stands and falls with."""
    return {
        "cpu": _cpu_model(),
        "vectors": info.cpu(),
        "cores": os.cpu_count(),
        "threads": threads,
        "caches": caches(_CACHES),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def _cpu_model() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def caches(folder: Path) -> dict[str, int]:
    """Return the sizes in bytes of the first core's data caches, as Linux tells them; elsewhere nothing.

    The last one belongs to all cores; the others, as far as this is concerned, to one.
    """
    sizes = {}
    for index in sorted(folder.glob("index*")):
        level, kind, size = ((index / name).read_text().strip() for name in ("level", "type", "size"))
        if kind != "Instruction":
            sizes[f"L{level}"] = int(size[:-1]) * _UNITS[size[-1]]
    return sizes


def cache_of(sizes: dict[str, int], footprint: float, threads: int) -> str:
    """Return the name of the smallest cache that holds `footprint` bytes of each of `threads` threads.

    >>> sizes = {"L1": 32 << 10, "L2": 512 << 10, "L3": 32 << 20}
    >>> [cache_of(sizes, footprint, 2) for footprint in (20e3, 20e4, 14e6, 20e6)]
    ['L1', 'L2', 'L3', 'memory']
    """
    last = list(sizes)[-1:]
    for name, size in sizes.items():
        if footprint * (threads if [name] == last else 1) <= size:
            return name
    return "memory" if sizes else "weights"


def footprints(sizes: dict[str, int], threads: int) -> list[int]:
    """Return bytes of one thread that lie well within each cache, and beyond the last one.

    >>> footprints({"L1": 32 << 10, "L2": 1 << 20, "L3": 32 << 20}, 2)
    [16384, 524288, 8388608, 67108864]
    """
    sizes = sizes or {"L1": 32 << 10, "L2": 512 << 10, "L3": 16 << 20}
    *own, common = sizes.values()
    return [*(size // 2 for size in own), common // (2 * threads), 4 * common // threads]
