"""From a description of traffic to its requests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from tunebatch.engine.request import Request
from tunebatch.workload.clip import Room, fitting_lengths, room
from tunebatch.workload.conversations import Conversations, drawn_conversations
from tunebatch.workload.prefixes import drawn_prefixes, with_prefix
from tunebatch.workload.prompts import PromptSource
from tunebatch.workload.realised import Workload, arriving, lengths_text
from tunebatch.workload.recorded import counted, recorded_rows, replayed
from tunebatch.workload.schedule import conversation_schedule, process_text, schedule
from tunebatch.workload.sharing import shared_share

if TYPE_CHECKING:
    from tunebatch.workload.spec import WorkloadSpec


def build(
    spec: WorkloadSpec,
    prompts: PromptSource,
    max_context: int,
    seed: int | None = None,
    *,
    kv_tokens: int | None = None,
    block_size: int = 16,
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
        block_size: Tokens of a KV block; requests share whole ones.
        vocab_size: Refuse prompts of a trace with ids from here on; None: not checked.
        tokenize: For traces with prompts in words.

    Raises:
        TraceError: The trace cannot be read, or has none of the arrivals that are wanted.
        ValueError: A request does not fit and may not be clipped, has an id beyond the vocabulary, or
            would never arrive.
    """
    seed = spec.seed if seed is None else seed
    limit = room(min(max_context, spec.max_context or max_context), kv_tokens if spec.clip else None)
    streams = [np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(7)]
    arrival_rng, *rngs, cancel_rng = streams
    notes = list(spec.notes)
    turns = None
    if spec.turns is not None:
        drawn = drawn_conversations(spec, prompts, limit, tuple(rngs))
        patterns, turns, clipped = drawn.requests, tuple(drawn.turns), drawn.clipped
        notes += _about_conversations(drawn, limit)
        unit_arrivals, rate_per_s = conversation_schedule(spec, drawn.number_of_each, arrival_rng, notes)
    elif spec.trace_file is not None:
        rows = recorded_rows(spec, tokenize, seed, notes)
        patterns, clipped = replayed(spec, rows, prompts, limit, block_size, vocab_size, rngs[2], notes)
        unit_arrivals, rate_per_s = schedule(spec, [r.arrival_s or 0.0 for r in rows], arrival_rng, notes)
    else:
        patterns, clipped = _drawn(spec, prompts, limit, tuple(rngs))
        unit_arrivals, rate_per_s = schedule(spec, [0.0] * len(patterns), arrival_rng, notes)
    if clipped:
        notes.append(f"{counted(clipped, len(patterns), 'request')} clipped to the {limit}")
    patterns = _hanging_up(spec, patterns, cancel_rng)
    times = [0.0] * len(patterns) if rate_per_s is None else [t / rate_per_s for t in unit_arrivals or ()]
    closed = spec.arrivals == "closed"
    return Workload(
        name=spec.name,
        requests=arriving(patterns, times),
        patterns=tuple(patterns),
        rate_per_s=rate_per_s,
        unit_arrivals_s=unit_arrivals,
        process=process_text(spec),
        lengths=lengths_text(patterns),
        seed=seed,
        notes=tuple(notes),
        concurrency=spec.concurrency if closed else None,
        think_time_s=spec.think_time_s if closed or turns is not None else 0.0,
        shared_share=shared_share(patterns, block_size, turns),
        turns=turns,
        hang_ups=_hang_ups_text(spec),
    )


def _drawn(
    spec: WorkloadSpec, prompts: PromptSource, limit: Room, rngs: tuple[np.random.Generator, ...]
) -> tuple[list[Request], int]:
    """Requests by the laws, and how many of them were clipped."""
    assert spec.prompt_lengths and spec.output_lengths and spec.num_requests
    prompt_length_rng, output_length_rng, text_rng, prefix_rng, _ = rngs
    n = spec.num_requests
    prefixes = drawn_prefixes(spec, n, prompts, prefix_rng)
    prompt_tokens = spec.prompt_lengths.sample(n, prompt_length_rng).tolist()
    output_tokens = spec.output_lengths.sample(n, output_length_rng).tolist()
    requests = []
    clipped = 0
    for number, (prefix, own_tokens) in enumerate(zip(prefixes, prompt_tokens, strict=True)):
        wanted = len(prefix) + own_tokens, output_tokens[number]
        place = f"workload {spec.name}: request {number}"
        length, max_tokens = fitting = fitting_lengths(*wanted, limit, spec.clip, place)
        clipped += fitting != wanted
        text = prompts.prompt(number, min(own_tokens, length), text_rng)
        prompt = with_prefix(prefix, text, length)
        requests.append(Request(number, prompt, max_tokens, ignore_eos=spec.ignore_eos))
    return requests, clipped


def _about_conversations(drawn: Conversations, limit: Room) -> list[str]:
    count, turns = drawn.count, len(drawn.requests) / drawn.count
    pauses_s = sum(turn.think_time_s for turn in drawn.turns) / count
    notes = [
        f"{count} conversations of {turns:.3g} turns on average, a later turn after the answer before it; a "
        f"rate counts turns, so conversations start at it divided by {turns:.3g}, and the load is below it "
        f"for the first and the last {pauses_s:.2g} s at least"
    ]
    if drawn.ended_early:
        notes.append(f"{counted(drawn.ended_early, count, 'conversation')} ended early by the {limit}")
    return notes


def _hanging_up(spec: WorkloadSpec, patterns: list[Request], rng: np.random.Generator) -> list[Request]:
    """The requests, some of which are cancelled after a while, if nothing said so before."""
    who_rng, when_rng = rng.spawn(2)
    leaves = who_rng.random(len(patterns)) < spec.cancel
    after_s = spec.cancel_after_s * when_rng.standard_exponential(len(patterns))
    return [
        replace(request, cancel_at_s=float(after)) if leaving and request.cancel_at_s is None else request
        for request, leaving, after in zip(patterns, leaves, after_s, strict=True)
    ]


def _hang_ups_text(spec: WorkloadSpec) -> str:
    if not spec.cancel:
        return ""
    return f"{100 * spec.cancel:g} % of clients hang up {spec.cancel_after_s:g} s after arrival on average"
