"""Files that are either the old ones or the new ones, whatever happens while they are written."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TextIO


def write_all(directory: Path, writers: Mapping[str, Callable[[TextIO], None]]) -> None:
    """Writes all files beside their final names, and puts them in place, in order, once all are on disk.

    Args:
        directory: Must exist.
        writers: File name to a function that writes its text.

    Raises:
        OSError: A file could not be written. Nothing is left behind, and where writing (not the
            final renaming) failed, the previous files are as they were.
    """
    written: list[tuple[Path, Path]] = []
    try:
        for name, write in writers.items():
            temporary = directory / f".{name}.{os.getpid()}.tmp"
            written.append((temporary, directory / name))
            with open(temporary, "w", encoding="utf-8", newline="") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
        for temporary, final in written:
            os.replace(temporary, final)
        _sync_directory(directory)
    finally:
        for temporary, _ in written:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def _sync_directory(directory: Path) -> None:
    """Makes the renaming itself durable, where the system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
