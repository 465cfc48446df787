"""CSV files with a header: rows as text by column name, and what a text must be."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tunebatch.workload.traces.row import TraceError, open_bytes

# Of a number that fits into 63 bits.
_DIGITS = 18


@dataclass(frozen=True, slots=True)
class Record:
    """One row and where it stands, for the messages."""

    path: Path
    line: int
    values: dict[str, str]

    def count(self, column: str) -> int:
        """A whole number, 0 or more.

        Raises:
            TraceError: It is none.
        """
        text = self.values[column]
        if not (text.isascii() and text.isdecimal() and len(text) <= _DIGITS):
            raise self.refused(f"{column} is {text!r}", "a whole number, 0 or more")
        return int(text)

    def seconds(self, column: str) -> float:
        """A finite number, 0 or more.

        Raises:
            TraceError: It is none.
        """
        text = self.values[column]
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not 0 <= value < math.inf:
            raise self.refused(f"{column} is {text!r}", "a number of seconds, 0 or more")
        return value

    def refused(self, problem: str, expected: str) -> TraceError:
        return TraceError(self.path, self.line, problem, expected)


def read_columns(path: Path, needed: tuple[str, ...]) -> Iterator[Record]:
    """The rows of a file, empty lines left out; columns are found by name, and others may stand among them.

    Raises:
        TraceError: A missing column, or a row with other fields than the header.
    """
    with open_bytes(path) as raw, io.TextIOWrapper(raw, "utf-8-sig", "replace") as lines:
        header = [name.strip() for name in next(lines, "").split(",")]
        for column in needed:
            if column not in header:
                raise TraceError(path, 1, f"no column {column!r}", ",".join(needed))
        for line, text in enumerate(lines, 2):
            if not text.strip():
                continue
            fields = [field.strip() for field in text.split(",")]
            if len(fields) != len(header):
                raise TraceError(path, line, f"{len(fields)} fields", f"{len(header)}: {','.join(header)}")
            yield Record(path, line, dict(zip(header, fields, strict=True)))
