"""A snippet in a process of its own, with a time limit: what it guards against is a hang or an abort."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence

SECONDS = 120

# Runs a layer large enough for two threads to pay and prints a digest of its bits; `call()` may be called anywhere.
PROLOGUE = """
import hashlib, os, sys, threading
import numpy as np
import nblstm
from nblstm import threads
from nblstm.engine import plan

threads._available = lambda: 64  # or a call would be serial, on a machine or an affinity of one core

def case(steps, rows, inputs, units, **options):
    x = np.random.default_rng(0).standard_normal((steps, rows, inputs), dtype=np.float32)
    return nblstm.LSTM(inputs, units, seed=1, **options).eval(), x

lstms = {
    "units": case(20, 1, 256, 256),
    "rows": case(12, 40, 64, 96),
    "directions": case(120, 2, 64, 72, bidirectional=True),
    "projection": case(60, 1, 64, 256, proj_size=128),
}

def call():
    digest = hashlib.sha256()
    for lstm, x in lstms.values():
        output, (h, c) = lstm(x)
        digest.update(output.tobytes() + h.tobytes() + c.tobytes())
    return digest.hexdigest()
"""


def run(body: str, *, prefix: Sequence[str] = (), **environment: str) -> list[str]:
    """Run PROLOGUE and `body` in a new process and return what it printed, as words."""
    command = [*prefix, sys.executable, "-c", PROLOGUE + body]
    result = subprocess.run(
        command, capture_output=True, text=True, timeout=SECONDS, env={**os.environ, **environment}, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.split()
