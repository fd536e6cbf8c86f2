"""docs/cells.md, done as it stands: its changes applied to a copy of the package, and its check run there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nblstm

PACKAGE = Path(nblstm.__file__).parent
PAGE = PACKAGE.parent / "docs" / "cells.md"


def changed(text: str, diff: str) -> str:
    """Return `text` after the change in `diff`, whose lines without a plus must stand in it once."""
    lines = diff.splitlines(keepends=True)
    before, after = ("".join(line[1:] for line in lines if line[0] != mark) for mark in "+-")
    assert text.count(before) == 1, f"docs/cells.md no longer fits the code:\n{before}"
    return text.replace(before, after)


def test_the_page_works(tmp_path: Path) -> None:
    page = PAGE.read_text(encoding="utf-8")
    diffs, (layer, check) = (re.findall(rf"```{kind}\n(.*?)```", page, re.DOTALL) for kind in ("diff", "python"))
    copy = tmp_path / "nblstm"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    cells = copy / "kernels" / "cells.py"
    text = cells.read_text(encoding="utf-8")
    for diff in diffs:
        text = changed(text, diff)
    cells.write_text(text, encoding="utf-8")
    (copy / "layers" / "mgu.py").write_text(layer, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, "-c", check], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
