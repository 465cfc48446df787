"""Where things go: results to stdout and to a folder, everything else to stderr."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunebatch.cli.errors import CliError

if TYPE_CHECKING:
    from rich.console import Console

_PLAIN_WIDTH = 150  # of a table in a file or a pipe, unless COLUMNS says another


def stdout() -> Console:
    return _console(sys.stdout)


def stderr() -> Console:
    return _console(sys.stderr)


def _console(file: Any) -> Console:
    from rich.console import Console

    console = Console(file=file, highlight=False, markup=False, emoji=False)
    if console.is_terminal:
        return console
    plain: Any = _NoTrailingBlanks(file)
    console = Console(file=plain, highlight=False, markup=False, emoji=False, soft_wrap=True)
    if not os.environ.get("COLUMNS", "").isdecimal():
        console.width = _PLAIN_WIDTH
    return console


class _NoTrailingBlanks:
    """A file that leaves out the blanks with which tables fill up their lines."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def write(self, text: str) -> int:
        *whole, last = text.split("\n")
        self._file.write("\n".join([*(line.rstrip(" ") for line in whole), last]))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def ascii_only() -> bool:
    """The terminal cannot show block characters."""
    try:
        "▒█▓░▚·▏╵".encode(sys.stdout.encoding or "ascii")
    except (UnicodeError, LookupError):
        return True
    return False


def print_notes(notes: Sequence[str]) -> None:
    """What was done to the traffic, which the numbers are about; one line each."""
    for index, note in enumerate(notes):
        print(f"{'note: ' if index == 0 else '      '}{note}")


def print_json(data: Any) -> None:
    print(json.dumps(data, indent=2, allow_nan=False))


def results_folder(command: str, out: Path | None) -> Path:
    """``--out``, or a new folder under ``results/`` of the working directory."""
    if out is not None:
        return out
    name = f"{command}-{time.strftime('%Y%m%d-%H%M%S')}"
    folder, again = Path("results") / name, 2
    while folder.exists():
        folder, again = Path("results") / f"{name}-{again}", again + 1
    return folder


def check_folder(folder: Path) -> None:
    """Before a model is loaded: can ``make_folder`` make it? Tries, and leaves nothing behind.

    Raises:
        CliError: It cannot.
    """
    missing = [one for one in (folder, *folder.absolute().parents) if not os.path.lexists(one)]
    try:
        make_folder(folder)
    finally:
        for one in missing:
            with contextlib.suppress(OSError):
                one.rmdir()


def make_folder(folder: Path) -> None:
    """Before anything is measured, so that no result is lost for want of a place.

    Tries to make a file there: who may do everything is told so of folders, too, that take none.

    Raises:
        CliError: It cannot be made, or not be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise CliError(f"--out {folder}: {_why_not(folder, error)}") from error


def make_trace_folder(trace: Path) -> None:
    """Before anything is measured, like `make_folder`; a file that is no trace of a run is not replaced.

    Raises:
        CliError: ``--trace`` names no file that can be written.
    """
    from tunebatch.report.perfetto import is_trace

    if trace.is_dir():
        raise CliError(f"--trace {trace}: a folder; name a file, such as {trace / 'trace.json'}")
    if trace.exists() and not is_trace(trace):
        raise CliError(
            f"--trace {trace}: there is such a file, which is no trace of a run, and it would be replaced; "
            f"name another file, or --trace-file {trace} to replay the requests in it"
        )
    try:
        trace.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(prefix=f".{trace.name}.", suffix=".tmp", dir=trace.parent):
            pass
    except OSError as error:
        raise CliError(f"--trace {trace}: {_why_not(trace.parent, error)}") from error


def _why_not(folder: Path, error: OSError) -> str:
    """Why nothing can be made in a folder; a system's own folder only says that there is no such file."""
    there = next(one for one in (folder, *folder.absolute().parents) if os.path.lexists(one))
    if not there.is_dir():
        return f"{there} is not a folder"
    return f"{there} is not writable ({(error.strerror or str(error)).lower()})"


def write_json(path: Path, data: Any) -> None:
    """All or nothing, as result files."""
    from tunebatch.measure.atomic import write_all

    text = json.dumps(data, indent=2, allow_nan=False) + "\n"

    def write(file: Any) -> None:
        file.write(text)

    write_all(path.parent, {path.name: write})
