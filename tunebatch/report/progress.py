"""What is going on, on stderr: a few changing lines on a terminal, plain lines elsewhere.

Nothing is drawn by a thread: the lines change only between runs, never during one.
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

    Attributes:
        live: The status can change in place; otherwise each is a line of its own, so be sparing.
    """

    def __init__(self, console: Console, quiet: bool = False) -> None:
        self._console = console
        self._quiet = quiet
        self._live: Live | None = None
        if console.is_terminal and not quiet:
            self._live = Live(console=console, auto_refresh=False, transient=True)

    @property
    def live(self) -> bool:
        return self._live is not None

    def __enter__(self) -> Progress:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def note(self, line: str | Text) -> None:
        """A fact that stays on the screen."""
        if not self._quiet:
            self._console.print(line if isinstance(line, Text) else Text(line), soft_wrap=True)

    def status(self, *lines: str | Text) -> None:
        """What is being done; replaced by the next one where the terminal can."""
        if self._quiet:
            return
        if self._live is None:
            for line in lines:
                self.note(line)
            return
        text = Text("\n").join(line if isinstance(line, Text) else Text(line) for line in lines)
        text.no_wrap, text.overflow = True, "ellipsis"
        self._live.update(text, refresh=True)
