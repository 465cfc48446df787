"""The slice of a trace that a description asks for becomes requests."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from tunebatch.engine.request import GREEDY, Request
from tunebatch.workload.clip import Room, fitting_lengths
from tunebatch.workload.hashed import HashedPrompts, scaled_blocks
from tunebatch.workload.prompts import PromptSource
from tunebatch.workload.traces import (
    TRACE_FORMATS,
    ReadOptions,
    TraceError,
    TraceRow,
    detect_format,
    read_trace,
)
from tunebatch.workload.traces.row import HASHED_BLOCK_TOKENS

if TYPE_CHECKING:
    from tunebatch.workload.spec import WorkloadSpec


def recorded_rows(
    spec: WorkloadSpec, tokenize: Callable[[str], Sequence[int]] | None, seed: int, notes: list[str]
) -> list[TraceRow]:
    """The slice of the trace in order of arrival, without the requests that cannot be served.

    Raises:
        TraceError: See `read_trace`; or no row has both prompt and output tokens.
    """
    assert spec.trace_file is not None
    limits = [limit for limit in (spec.trace_limit, spec.num_requests) if limit is not None]
    options = ReadOptions(need_arrivals=spec.arrivals == "trace", tokenize=tokenize, seed=seed)
    limit = min(limits, default=None)
    read = read_trace(spec.trace_file, spec.trace_format, skip=spec.trace_start, limit=limit, options=options)
    if limit is not None and len(read) < limit:
        notes.append(f"the trace has {len(read)} rows, {limit} were asked for")
    rows = [row for row in read if row.prompt_tokens and row.output_tokens]
    if not rows:
        raise TraceError(
            spec.trace_file,
            read[0].line,
            "no row from here on has both prompt and output tokens",
            "one at least",
        )
    if len(rows) < len(read):
        notes.append(
            f"{counted(len(read) - len(rows), len(read), 'row')} dropped for having no prompt or no output "
            "token"
        )
    if note := TRACE_FORMATS[spec.trace_format or detect_format(spec.trace_file)].note:
        notes.append(note)
    if with_images := sum(row.num_images > 0 for row in rows):
        notes.append(f"{counted(with_images, len(rows), 'request')} stripped of images")
    late = [row.arrival_s or 0.0 for row in rows]
    if displaced := sum(after < before for before, after in itertools.pairwise(late)):
        notes.append(
            f"{counted(displaced, len(rows), 'row')} earlier than the row before and put in order of arrival"
        )
    if 1 < (times := len(set(late))) < len(rows) / 2:
        notes.append(
            f"the trace has only {times} different times for {len(rows)} requests: if it rounds them, its "
            "bursts are none; arrivals = 'poisson' spreads them"
        )
    return sorted(rows, key=lambda row: row.arrival_s or 0.0)


def replayed(
    spec: WorkloadSpec,
    rows: list[TraceRow],
    prompts: PromptSource,
    limit: Room,
    block_size: int,
    vocab_size: int | None,
    rng: np.random.Generator,
    notes: list[str],
) -> tuple[list[Request], int]:
    """The requests of the rows, and how many of them were clipped.

    Of a prompt that the trace brings itself the end is kept, which is what the answer is to; of one that
    it tells the hashes of the beginning, which is what others share.

    Raises:
        ValueError: A request does not fit and may not be clipped, or has an id beyond the vocabulary.
    """
    block_tokens, scaled = HASHED_BLOCK_TOKENS, None
    if spec.clip and any(row.hashes for row in rows):
        rows, block_tokens, scaled = scaled_blocks(rows, limit, block_size)
        notes += [scaled] if scaled else []
    hashed = HashedPrompts(prompts, block_tokens, rng)
    requests = []
    clipped = 0
    for number, row in enumerate(rows):
        place = f"{spec.trace_file}, line {row.line}"
        wanted = row.prompt_tokens, row.output_tokens
        length, max_tokens = fitting = fitting_lengths(*wanted, limit, spec.clip, place)
        clipped += fitting != wanted
        if row.prompt is not None:
            prompt = row.prompt[-length:]
            if vocab_size is not None and max(prompt) >= vocab_size:
                raise ValueError(
                    f"{place}: token {max(prompt)} in the prompt; expected ids below {vocab_size}"
                )
        elif row.hashes is not None:
            prompt = hashed.prompt(row.hashes, length)
        else:
            prompt = prompts.prompt(number, length, rng)
        requests.append(
            Request(
                id=number,
                prompt=prompt,
                max_tokens=max_tokens,
                cancel_at_s=row.patience_s,
                sampling=row.sampling or GREEDY,
                ignore_eos=spec.ignore_eos if row.ignore_eos is None else row.ignore_eos,
            )
        )
    return requests, clipped


def counted(part: int, whole: int, thing: str) -> str:
    """``2 of 9 rows were``"""
    return f"{part} of {whole} {thing}{'s' if whole != 1 else ''} {'was' if part == 1 else 'were'}"
