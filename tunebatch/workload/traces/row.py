"""What every trace reader gives, takes and raises."""

from __future__ import annotations

import difflib
import errno
import gzip
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from tunebatch.engine.request import Sampling


class TraceError(ValueError):
    """A trace cannot be used; one line with the file, the line, what is wrong and what is expected."""

    def __init__(self, path: Path, line: int | None, problem: str, expected: str) -> None:
        place = f"{path}" if line is None else f"{path}, line {line}"
        super().__init__(f"{place}: {problem}; expected {expected}")
        self.path = path
        self.line = line


class NoArrivalsError(TraceError):
    """A row does not say when its request came, and that is wanted."""

    def __init__(self, path: Path, line: int, problem: str) -> None:
        super().__init__(path, line, problem, _NO_ARRIVALS)


@dataclass(frozen=True, slots=True)
class TraceRow:
    """One recorded request.

    Attributes:
        line: Its line in the file, from 1.
        arrival_s: Seconds on the file's own scale; None where there is none or none is wanted.
        prompt_tokens: Length of the prompt.
        output_tokens: Tokens that were generated, or at most are to be.
        prompt: The prompt's token ids, where the trace has them.
        hashes: Of the prompt's blocks of `HASHED_BLOCK_TOKENS`, where the trace has them: equal ones stand
            for equal tokens, with equal tokens before them.
        patience_s: From the arrival until the client hangs up, or None.
        sampling: How tokens are chosen, or None for the workload's choice.
        ignore_eos: Whether to go on after the end-of-sequence token, or None for the workload's choice.
        num_images: Images of a multimodal request.
    """

    line: int
    arrival_s: float | None
    prompt_tokens: int
    output_tokens: int
    prompt: tuple[int, ...] | None = None
    patience_s: float | None = None
    sampling: Sampling | None = None
    ignore_eos: bool | None = None
    num_images: int = 0
    hashes: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """What a reader needs to know beside the file.

    Attributes:
        need_arrivals: A row without an arrival is an error; otherwise times are not looked at.
        tokenize: Turns a text prompt into token ids; a ValueError of it says why it cannot. None: text
            prompts are refused.
        seed: For what a description of traffic, rather than a record of it, leaves to chance.
    """

    need_arrivals: bool = True
    tokenize: Callable[[str], Sequence[int]] | None = None
    seed: int = 0


HASHED_BLOCK_TOKENS = 512
_NO_ARRIVALS = (
    "a time, or an arrival process in place of the trace's own ([workload] arrivals = 'poisson' and "
    "rate_per_s in a profile)"
)


def open_bytes(path: Path) -> IO[bytes]:
    """The trace's lines as bytes; a name that ends in ``.gz`` is decompressed.

    Raises:
        TraceError: It cannot be opened.
    """
    try:
        if path.is_dir():
            raise TraceError(path, None, "is a folder", "a trace file")
        return cast("IO[bytes]", gzip.open(path, "rb")) if path.suffix == ".gz" else path.open("rb")
    except OSError as error:
        beside = [file.name for file in path.parent.glob("*")] if error.errno == errno.ENOENT else []
        near = difflib.get_close_matches(path.name, beside, 1)
        raise TraceError(
            path,
            None,
            f"cannot be opened: {error.strerror or error}",
            f"a trace file, such as {path.with_name(near[0])}" if near else "a trace file",
        ) from error
