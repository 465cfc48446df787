"""From an exception to one line and an exit code."""

from __future__ import annotations

import errno
import os
import sys
import traceback

OK, INTERNAL, USAGE, NOT_COMPARABLE, INFEASIBLE, ENVIRONMENT, INTERRUPTED = 0, 1, 2, 5, 6, 7, 130
MEANINGS = {
    OK: "an answer",
    INTERNAL: "internal error",
    USAGE: "wrong usage",
    NOT_COMPARABLE: "results that cannot be compared",
    INFEASIBLE: "the SLO is missed, or nothing fits",
    ENVIRONMENT: "no valid result: other tokens, too few samples, clocks that differ, a full disk, something "
    "missing",
    INTERRUPTED: "interrupted",
}
_INVALID = {"TokenMismatchError"}  # by name: to import them would load torch
_TOO_LARGE = {"OutOfDeviceMemoryError"}
_OUT_OF_MEMORY = {"OutOfMemoryError"}  # torch's, of what is no step: to load a model, for one
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class CliError(Exception):
    """What the user has to know, in one line."""

    def __init__(self, message: str, code: int = USAGE) -> None:
        super().__init__(message)
        self.code = code


def report_error(error: Exception) -> int:
    """Says it in one line on stderr; a traceback only under ``TUNEBATCH_DEBUG``. Returns the exit code."""
    if os.environ.get("TUNEBATCH_DEBUG"):
        traceback.print_exception(error)
    message, code = _one_line(error)
    print(f"error: {message}", file=sys.stderr)
    return code


def disk_is_full(error: BaseException | None) -> bool:
    """The error, or what caused it, is a write that found no room."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _NO_ROOM:
            return True
        error = error.__cause__
    return False


def _one_line(error: Exception) -> tuple[str, int]:
    text = " ".join(str(error).split())
    name = type(error).__name__
    if isinstance(error, CliError):
        return text, error.code
    if hasattr(error, "format_message"):  # typer's usage errors
        return " ".join(str(error.format_message()).split()), USAGE
    if disk_is_full(error):
        place = f" at {error.filename}" if isinstance(error, OSError) and error.filename else ""
        return (
            f"the disk is full{place}; what was written before is intact: free some space, then repeat",
            ENVIRONMENT,
        )
    if name in _INVALID:
        return f"{text}; nothing was measured, as the results would not be of the same work", ENVIRONMENT
    if name in _TOO_LARGE:
        return text, INFEASIBLE
    if name in _OUT_OF_MEMORY:
        first, _, rest = text.partition(". ")
        asked = (rest.partition(". ")[0] or first).replace("Tried", "tried")
        return f"out of device memory: {asked}; use a smaller model", INFEASIBLE
    if type(error).__module__.startswith("tunebatch."):
        return text, USAGE if isinstance(error, ValueError) else INTERNAL
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename else ""
        return f"{place}{(error.strerror or text).lower()}", INTERNAL
    hint = "" if os.environ.get("TUNEBATCH_DEBUG") else " (TUNEBATCH_DEBUG=1 shows where)"
    return f"internal error: {name}: {text}{hint}", INTERNAL
