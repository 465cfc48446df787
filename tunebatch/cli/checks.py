"""One line of what the doctor finds, with what mends it."""

from __future__ import annotations

import sys

Check = dict[str, str]


def check(what: str, found: str, mend: str = "", state: str = "") -> Check:
    """A line; what has something to mend is ``missing`` unless the state is told."""
    return {"state": state or ("missing" if mend else "ok"), "what": what, "found": found, "mend": mend}


def pip(arguments: str) -> str:
    """The command that installs it into this Python."""
    return f"{sys.executable} -m pip install {arguments}"
