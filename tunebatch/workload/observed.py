"""Lengths that somebody counted: a file of them is a law."""

from __future__ import annotations

import re
from pathlib import Path

from tunebatch.workload.laws import LONGEST, Empirical

_LINE = re.compile(r"\s*(\d+)\s*(?:,\s*(\d+\.?\d*|\.\d+)\s*)?", re.ASCII)
_FORM = "one whole number of tokens a line, and if need be ',' and how often it occurs: 417 or 417,3"


def read_observed(path: Path) -> Empirical:
    """The law of a file with a length a line, or a length and its weight; empty lines are passed over.

    Raises:
        ValueError: The file cannot be read, has no length, or a line is none; one line that names both.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {(error.strerror or str(error)).lower()}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not a text; use {_FORM}") from None
    values, weights = [], []
    for number, line in enumerate(lines, 1):
        if line.strip():
            value, weight = _length(f"{path}, line {number}", line)
            values.append(value)
            weights.append(weight)
    if not values:
        raise ValueError(f"{path}: no length; use {_FORM}")
    try:
        return Empirical(tuple(values), tuple(weights) if set(weights) != {1.0} else None)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _length(place: str, line: str) -> tuple[int, float]:
    found = _LINE.fullmatch(line)
    if found is None:
        shown = line.strip() if len(line) <= 40 else f"{line.strip()[:37]}..."
        raise ValueError(f"{place}: {shown!r}; use {_FORM}")
    length, weight = found.groups()
    digits = length.lstrip("0")
    if not digits:
        raise ValueError(f"{place}: a length of 0; the nearest valid one is 1")
    if len(digits) > len(str(LONGEST)) or int(digits) > LONGEST:
        raise ValueError(f"{place}: a length of {digits[:20]}; the nearest valid one is {LONGEST}")
    return int(digits), 1.0 if weight is None else float(weight)
