"""From a description of traffic to its requests."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from tunebatch.engine.request import GREEDY, Request
from tunebatch.workload import arrivals
from tunebatch.workload.clip import clipped_lengths, room
from tunebatch.workload.prompts import PromptSource
from tunebatch.workload.realised import Workload, arriving, lengths_text
from tunebatch.workload.traces import ReadOptions, TraceRow, mean_rate_per_s, read_trace

if TYPE_CHECKING:
    from tunebatch.workload.spec import WorkloadSpec

# What can be stretched to any number of requests without an infinite factor.
_LEAST_SPAN = 1e-300


def build(
    spec: WorkloadSpec,
    prompts: PromptSource,
    max_context: int,
    seed: int | None = None,
    *,
    kv_tokens: int | None = None,
    vocab_size: int | None = None,
    tokenize: Callable[[str], Sequence[int]] | None = None,
) -> Workload:
    """The requests that a description stands for; the same description and seed give the same ones.

    Arrivals, prompt lengths, output lengths and prompts have generators of their own: to change one
    leaves the others as they were.

    Args:
        prompts: Where prompts come from that the trace does not bring itself.
        max_context: The model's context, in tokens.
        seed: Instead of the description's: fresh arrivals, lengths and prompts.
        kv_tokens: What the KV cache holds; requests that may be clipped are clipped to it too.
        vocab_size: Refuse prompts of a trace with ids from here on; None: not checked.
        tokenize: For traces with prompts in words.

    Raises:
        TraceError: The trace cannot be read, or has none of the arrivals that are wanted.
        ValueError: A request does not fit and may not be clipped, has an id beyond the vocabulary, or
            would never arrive.
    """
    seed = spec.seed if seed is None else seed
    limit = room(min(max_context, spec.max_context or max_context), kv_tokens if spec.clip else None)
    streams = [np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(4)]
    arrival_rng, prompt_length_rng, output_length_rng, prompt_rng = streams
    notes = list(spec.notes)
    if spec.trace_file is not None:
        rows = _recorded(spec, tokenize, notes)
    else:
        rows = _drawn(spec, prompt_length_rng, output_length_rng)
    unit_arrivals, rate_per_s = _schedule(spec, rows, arrival_rng, notes)
    patterns = []
    clipped = 0
    for request_id, row in enumerate(rows):
        lengths = clipped_lengths(row.prompt_tokens, row.output_tokens, limit.tokens)
        if lengths != (row.prompt_tokens, row.output_tokens):
            clipped += 1
            if not spec.clip:
                raise ValueError(
                    f"{_place(spec, row)}: {row.prompt_tokens} prompt + {row.output_tokens} output tokens "
                    f"exceed the context of {limit.tokens}; expected at most that, or clip = true"
                )
        if row.prompt is None:
            prompt = prompts.prompt(lengths[0], prompt_rng)
        else:
            # The end of a prompt is what the answer is to.
            prompt = row.prompt[-lengths[0] :]
            if vocab_size is not None and max(prompt) >= vocab_size:
                raise ValueError(
                    f"{_place(spec, row)}: token {max(prompt)} in the prompt; expected ids below {vocab_size}"
                )
        patterns.append(
            Request(
                id=request_id,
                prompt=prompt,
                max_tokens=lengths[1],
                cancel_at_s=row.patience_s,
                sampling=row.sampling or GREEDY,
                ignore_eos=spec.ignore_eos if row.ignore_eos is None else row.ignore_eos,
            )
        )
    if clipped:
        notes.append(f"{_of(clipped, len(rows), 'request')} clipped to the {limit}")
    closed = spec.arrivals == "closed"
    times = [0.0] * len(rows) if rate_per_s is None else [t / rate_per_s for t in unit_arrivals or ()]
    return Workload(
        name=spec.name,
        requests=arriving(patterns, times),
        patterns=tuple(patterns),
        rate_per_s=rate_per_s,
        unit_arrivals_s=unit_arrivals,
        process=_process(spec),
        lengths=lengths_text(patterns),
        seed=seed,
        notes=tuple(notes),
        concurrency=spec.concurrency if closed else None,
        think_time_s=spec.think_time_s if closed else 0.0,
    )


def _drawn(
    spec: WorkloadSpec, prompt_rng: np.random.Generator, output_rng: np.random.Generator
) -> list[TraceRow]:
    assert spec.prompt_lengths and spec.output_lengths and spec.num_requests
    prompt_tokens = spec.prompt_lengths.sample(spec.num_requests, prompt_rng).tolist()
    output_tokens = spec.output_lengths.sample(spec.num_requests, output_rng).tolist()
    pairs = zip(prompt_tokens, output_tokens, strict=True)
    return [TraceRow(number, None, prompt, output) for number, (prompt, output) in enumerate(pairs)]


def _recorded(
    spec: WorkloadSpec, tokenize: Callable[[str], Sequence[int]] | None, notes: list[str]
) -> list[TraceRow]:
    """The slice of the trace in order of arrival, without the requests that cannot be served."""
    assert spec.trace_file is not None
    limits = [limit for limit in (spec.trace_limit, spec.num_requests) if limit is not None]
    options = ReadOptions(need_arrivals=spec.arrivals == "trace", tokenize=tokenize)
    limit = min(limits, default=None)
    read = read_trace(spec.trace_file, spec.trace_format, skip=spec.trace_start, limit=limit, options=options)
    if limit is not None and len(read) < limit:
        notes.append(f"the trace has {len(read)} rows, {limit} were asked for")
    rows = [row for row in read if row.prompt_tokens and row.output_tokens]
    if not rows:
        raise ValueError(
            f"trace {spec.trace_file}: none of the {len(read)} rows has both prompt and output tokens"
        )
    if len(rows) < len(read):
        notes.append(
            f"{_of(len(read) - len(rows), len(read), 'row')} dropped for having no prompt or no output token"
        )
    if with_images := sum(row.num_images > 0 for row in rows):
        notes.append(f"{_of(with_images, len(rows), 'request')} stripped of images")
    late = [row.arrival_s or 0.0 for row in rows]
    if displaced := sum(after < before for before, after in itertools.pairwise(late)):
        notes.append(
            f"{_of(displaced, len(rows), 'row')} earlier than the row before and put in order of arrival"
        )
    return sorted(rows, key=lambda row: row.arrival_s or 0.0)


def _schedule(
    spec: WorkloadSpec, rows: list[TraceRow], rng: np.random.Generator, notes: list[str]
) -> tuple[tuple[float, ...] | None, float | None]:
    """Arrivals at one request a second and the rate to divide them by; None: no schedule."""
    n = len(rows)
    rate = spec.rate_per_s
    if spec.arrivals == "poisson":
        return _at_mean_rate(arrivals.poisson(n, 1.0, rng)), rate
    if spec.arrivals == "gamma":
        return _at_mean_rate(arrivals.gamma(n, 1.0, spec.burstiness, rng)), rate
    if spec.arrivals == "constant":
        return tuple(arrivals.constant(n, 1.0).tolist()), rate
    if spec.arrivals == "burst":
        size = spec.burst_size or n
        rate = size / spec.burst_gap_s if spec.burst_gap_s else rate
        if rate is None or size >= n:
            return None, None
        return tuple(arrivals.burst(n, size, size).tolist()), rate
    if spec.arrivals == "closed":
        return None, None
    return _recorded_schedule(spec, [row.arrival_s or 0.0 for row in rows], notes)


def _at_mean_rate(times: arrivals.Times) -> tuple[float, ...]:
    """Stretched so that the n-th request arrives at n, as ``vllm bench serve`` does: the sum of a few dozen
    random gaps is off by a tenth, and every rate that a run is given for would be too."""
    if times[-1] < _LEAST_SPAN:
        raise ValueError(
            f"the gaps between {times.size} arrivals are too small to be told from 0; "
            "use more requests or a higher burstiness"
        )
    return tuple((times * (times.size / times[-1])).tolist())


def _recorded_schedule(
    spec: WorkloadSpec, times: list[float], notes: list[str]
) -> tuple[tuple[float, ...] | None, float | None]:
    own_rate = mean_rate_per_s(times)
    if own_rate is None:
        if spec.rate_per_s is not None:
            notes.append(
                f"the trace has no duration, so its {len(times)} requests could not be rescaled in rate"
            )
        return None, None
    if spec.rate_per_s is not None and spec.rate_per_s != own_rate:
        notes.append(
            f"the trace was rescaled in time from {own_rate:.4g} to {spec.rate_per_s:.4g} requests/s"
        )
    return tuple((time - times[0]) * own_rate for time in times), spec.rate_per_s or own_rate


def _process(spec: WorkloadSpec) -> str:
    if spec.arrivals == "gamma":
        return f"gamma (burstiness {spec.burstiness:g})"
    if spec.arrivals == "burst" and spec.burst_size:
        return f"bursts of {spec.burst_size}"
    if spec.arrivals == "trace" and spec.trace_file is not None:
        return f"arrivals of {spec.trace_file.name}"
    return {"poisson": "Poisson", "constant": "evenly spaced"}.get(spec.arrivals, spec.arrivals)


def _place(spec: WorkloadSpec, row: TraceRow) -> str:
    if spec.trace_file is not None:
        return f"{spec.trace_file}, line {row.line}"
    return f"workload {spec.name}: request {row.line}"


def _of(part: int, whole: int, thing: str) -> str:
    return f"{part} of {whole} {thing}{'s' if whole != 1 else ''} {'was' if part == 1 else 'were'}"
