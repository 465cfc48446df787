"""The journal on disk: one process writes it, and its last line is whole whatever became of the last one."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from optuna.storages.journal import JournalFileBackend

__all__ = ["JournalFile", "SweepInUseError", "only_writer"]


class SweepInUseError(ValueError):
    """Another process is sweeping in the directory; one line for the user."""


@contextlib.contextmanager
def only_writer(directory: Path) -> Iterator[None]:
    """Keeps other processes from sweeping in the directory; a kill lets go of it too.

    Raises:
        SweepInUseError: Another one is at work there.
    """
    directory.mkdir(parents=True, exist_ok=True)
    if sys.platform == "win32":
        yield
        return
    import fcntl

    with open(directory / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SweepInUseError(
                f"{directory}: another sweep is at work there; wait for it, or choose another folder"
            ) from None
        yield


class JournalFile(JournalFileBackend):
    """Optuna's journal, which can never be read again once a line was cut short and another one followed.

    So a line that was cut short goes: at once where the disk is full, on opening where a process was killed.
    It takes no lock, since Optuna's own outlives a kill by half a minute: hold `only_writer`.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self._path = path
        os.truncate(path, path.read_bytes().rfind(b"\n") + 1)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """All of the lines, or none."""
        rest = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs).encode()
        with open(self._path, "ab", buffering=0) as file:
            whole = file.tell()
            try:
                while rest:
                    rest = rest[file.write(rest) :]
                os.fsync(file.fileno())
            except BaseException:
                file.truncate(whole)
                raise
