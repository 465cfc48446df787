"""Files with one JSON object a line: an object, where it stands, and what its values must be."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from tunebatch.workload.traces.row import TraceError, open_bytes

# Any such integer is a finite float and fits into the 64 bits that others give it.
LARGEST = 2**63 - 1


class JsonLine:
    """One object and where it stands, for the messages.

    Raises:
        TraceError: The line is no JSON object.
    """

    def __init__(self, path: Path, number: int, raw: bytes) -> None:
        self.path = path
        self.number = number
        try:
            values = json.loads(raw.decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            self.refuse(f"not JSON: {error}", "one JSON object a line")
        if not isinstance(values, dict):
            self.refuse(f"a JSON {type(values).__name__}", "one JSON object a line")
        self.values: dict[str, Any] = values

    def number_of(self, key: str, low: float) -> float:
        """A finite number from ``low`` on."""
        value = self.values[key]
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= LARGEST:
            self.refuse(f"{key} is {shown(value)}", f"a number, {low:g} or more")
        return float(value)

    def whole(self, key: str, low: int) -> int:
        """A whole number from ``low`` on."""
        value = self.values[key]
        if not (is_whole(value) and low <= value <= LARGEST):
            self.refuse(f"{key} is {shown(value)}", f"a whole number, {low} or more")
        return int(value)

    def refuse(self, problem: str, expected: str) -> NoReturn:
        raise TraceError(self.path, self.number, problem, expected)


def read_lines(path: Path) -> Iterator[JsonLine]:
    """The objects of a file; empty lines are passed over."""
    with open_bytes(path) as lines:
        for number, raw in enumerate(lines, 1):
            if raw.strip():
                yield JsonLine(path, number, raw)


def wholes(value: object) -> tuple[int, ...] | None:
    """The whole numbers, 0 or more, of a list that is not empty; None for anything else."""
    if not isinstance(value, list) or not value:
        return None
    return tuple(value) if all(is_whole(one) and 0 <= one <= LARGEST for one in value) else None


def is_whole(value: object) -> bool:
    """Python takes true and false for numbers; JSON does not."""
    return isinstance(value, int) and not isinstance(value, bool)


def shown(value: object) -> str:
    """The value as JSON, cut to what a message has room for."""
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
