"""Sentences break between words, and never between a number and its unit."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from tunebatch.report.prose import print_prose, wrapped

TOLD = "mixed over static (1.1x): 124 ms a request behind prompts, 21.8 sequences a step, 5 % empty, 3 req/s"


@pytest.mark.parametrize("width", range(20, 110))
def test_no_line_begins_with_a_unit_and_no_word_is_lost(width: int) -> None:
    lines = wrapped(TOLD, width).split("\n")
    assert max(map(len, lines)) <= width and " ".join(lines) == TOLD
    assert not {line.split()[0].rstrip(",") for line in lines} & {"ms", "sequences", "%", "req/s"}


def test_words_that_only_begin_like_a_unit_may_begin_a_line() -> None:
    assert wrapped("in 2 minutes", 4) == "in 2\nminutes"


def test_a_console_that_wraps_nothing_gets_one_line() -> None:
    for soft_wrap, lines in ((True, 1), (False, 4)):
        file = io.StringIO()
        print_prose(Console(file=file, width=25, soft_wrap=soft_wrap), TOLD, "dim")
        assert len(file.getvalue().splitlines()) == lines
