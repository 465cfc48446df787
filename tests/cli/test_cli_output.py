"""What a pipe gets: lines as wide as COLUMNS, sentences in one piece, no blanks at the ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tunebatch.cli import output

CALL = ["run", "mixed", "-n", "64", "--rate", "9", "-o", "here"]


def test_a_pipe_gets_whole_sentences_and_no_trailing_blanks(
    tunebatch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    lines = tunebatch(*CALL).out.splitlines()
    assert lines == [line.rstrip(" ") for line in lines]
    (told,) = [line for line in lines if line.startswith("queue: before the first step;")]
    assert told.endswith("waiting behind a prefill") and len(told) > 150
    header = next(line for line in lines if line.startswith("strategy"))
    assert "knobs" in header and "x static" not in header


def test_a_pipe_obeys_columns(tunebatch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    narrow = tunebatch(*CALL).out.splitlines()
    assert "knobs" not in next(line for line in narrow if line.startswith("strategy"))
    monkeypatch.setenv("COLUMNS", "wide")
    assert output.stdout().width == 150
    monkeypatch.setenv("COLUMNS", "60")
    assert output.stderr().width == 60


def test_what_a_line_has_in_front_stays(tmp_path: Path) -> None:
    with (tmp_path / "out").open("w") as file:
        console = output._console(file)
        console.print("  a  ", end="")
        console.print("b  ")
        console.print("   ")
    assert (tmp_path / "out").read_text() == "  a  b\n\n"
