"""Sentences on the screen: broken between words, but never between a number and its unit."""

from __future__ import annotations

import re
import textwrap

from rich.console import Console
from rich.text import Text

# What may follow a number, and so must not begin a line.
_UNITS = "%|us|ms|s|min|h|x|tokens|req/s|tok/s|requests|sequences|[KMG]iB|GB/s|J|W"
_NUMBER_AND_UNIT = re.compile(rf"(?<=\d) (?=(?:{_UNITS})(?![\w/]))")
_BOUND = "\N{NO-BREAK SPACE}"


def print_prose(console: Console, text: str, style: str = "") -> None:
    """A paragraph as wide as the console; unbroken where the console wraps nothing."""
    if not console.soft_wrap:
        text = wrapped(text, console.width)
    console.print(Text(text, style=style), soft_wrap=True)


def wrapped(text: str, width: int) -> str:
    """The text in lines of at most ``width``, but for a word that is longer."""
    bound = _NUMBER_AND_UNIT.sub(_BOUND, text)
    lines = textwrap.wrap(bound, width, break_long_words=False, break_on_hyphens=False)
    return "\n".join(lines).replace(_BOUND, " ")
