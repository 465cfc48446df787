"""What is going on, on stderr: one changing line on a terminal, plain lines elsewhere.

Nothing is drawn by a thread: a line changes only when a run has ended, never during one.
"""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.text import Text


class Progress:
    """Shows notes, which stay, and a status, which changes.

    Args:
        console: Of stderr.
        quiet: Show nothing.
    """

    def __init__(self, console: Console, quiet: bool = False) -> None:
        self._console = console
        self._quiet = quiet
        self._live: Live | None = None
        if console.is_terminal and not quiet:
            self._live = Live(console=console, auto_refresh=False, transient=True)

    def __enter__(self) -> Progress:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def note(self, line: str) -> None:
        """A fact that stays on the screen."""
        if not self._quiet:
            self._console.print(Text(line), soft_wrap=True)

    def status(self, line: str) -> None:
        """What is being done; replaced by the next one where the terminal can."""
        if self._quiet:
            return
        if self._live is None:
            self.note(line)
        else:
            self._live.update(Text(line, no_wrap=True, overflow="ellipsis"), refresh=True)
