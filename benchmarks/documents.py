"""Documents of which a part is written by a script: what lies between two comments that name it."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def replace_part(document: Path, name: str, text: str) -> None:
    """Put `text` between ``<!-- name: begin -->`` and ``<!-- name: end -->``; ValueError if they are not there."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, found_begin, rest = document.read_text(encoding="utf-8").partition(begin)
    _, found_end, after = rest.partition(end)
    if not found_begin or not found_end:
        raise ValueError(f"{document.name} has no lines {begin} and {end}")
    document.write_text(f"{before}{begin}\n\n{text.strip()}\n\n{end}{after}", encoding="utf-8")
