"""One wording for every error of the library: which argument, what was expected, what came, and a hint.

``LSTM input: expected (T, B, 10) because input_size=10, got (5, 3, 8)``
"""

from __future__ import annotations


def message(argument: str, expected: str, got: object, *, because: str = "", hint: str = "") -> str:
    """Return the text of an error in the library's one form.

    >>> message("LSTM input", "(T, B, 10)", (5, 3, 8), because="input_size=10")
    'LSTM input: expected (T, B, 10) because input_size=10, got (5, 3, 8)'
    """
    reason = f" because {because}" if because else ""
    advice = f". {hint}" if hint else ""
    return f"{argument}: expected {expected}{reason}, got {got}{advice}"


class WeightFileError(ValueError):
    """A weight file that cannot be read: names the file, what was found in it and what to do."""
