"""Conversations are drawn: how many turns, what is said in them, and where they end for want of context."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tunebatch.engine.request import Request
from tunebatch.workload.clip import Room, fitting_lengths
from tunebatch.workload.prefixes import drawn_prefixes, with_prefix
from tunebatch.workload.prompts import PromptSource
from tunebatch.workload.turns import Turn

if TYPE_CHECKING:
    from tunebatch.workload.spec import WorkloadSpec

Rngs = tuple[np.random.Generator, ...]


@dataclass(frozen=True, slots=True)
class Conversations:
    """Turns of all conversations, one conversation after another.

    Attributes:
        requests: As if all had arrived at 0, by id; in later prompts something stands in for the answers.
        turns: What each request adds, by id.
        clipped: First turns that were made to fit.
        ended_early: Conversations whose next turn would not have fitted.
    """

    requests: list[Request]
    turns: list[Turn]
    clipped: int
    ended_early: int

    @property
    def count(self) -> int:
        return sum(turn.first for turn in self.turns)

    @property
    def number_of_each(self) -> list[int]:
        """The number, from 0, of the conversation that each request belongs to."""
        return [number - 1 for number in itertools.accumulate(turn.first for turn in self.turns)]


@dataclass(frozen=True, slots=True)
class _Plan:
    """A turn before it has words; the prefix is that of a first turn, which has no thinking before it."""

    prefix: tuple[int, ...] | None
    prompt_tokens: int
    text_tokens: int
    answer_tokens: int
    think_time_s: float


def drawn_conversations(spec: WorkloadSpec, prompts: PromptSource, limit: Room, rngs: Rngs) -> Conversations:
    """As many conversations as make up the requests asked for; more requests of a seed begin with the same.

    A conversation ends early when its next turn and the answer would not fit.

    Args:
        rngs: For prompt lengths, output lengths, texts, shared beginnings and turns.

    Raises:
        ValueError: A request does not fit and may not be clipped.
    """
    prompt_rng, output_rng, text_rng, prefix_rng, turn_rng = rngs
    *plan_rngs, answer_rng = turn_rng.spawn(3)
    assert spec.num_requests
    prefixes = drawn_prefixes(spec, spec.num_requests, prompts, prefix_rng)
    plans, clipped, ended_early = _planned(spec, prefixes, limit, (prompt_rng, output_rng, *plan_rngs))
    requests: list[Request] = []
    turns: list[Turn] = []
    history: tuple[int, ...] = ()
    for request_id, plan in enumerate(plans):
        text = prompts.prompt(request_id, plan.text_tokens, text_rng)
        if plan.prefix is not None:
            history, text = (), with_prefix(plan.prefix, text, plan.prompt_tokens)
        prompt = (*history, *text)
        answer = prompts.prompt(request_id, plan.answer_tokens, answer_rng)
        history = (*prompt, *answer)
        requests.append(Request(request_id, prompt, plan.answer_tokens, ignore_eos=spec.ignore_eos))
        turns.append(Turn(plan.prefix is not None, text, answer, plan.think_time_s))
    return Conversations(requests, turns, clipped, ended_early)


def _planned(
    spec: WorkloadSpec, prefixes: list[tuple[int, ...]], limit: Room, rngs: Rngs
) -> tuple[list[_Plan], int, int]:
    """The turns, those that were clipped, and the conversations that ended early."""
    assert spec.turns and spec.prompt_lengths and spec.output_lengths
    prompt_rng, output_rng, count_rng, think_rng = rngs
    n = len(prefixes)
    # A conversation has a turn at least, and draws for one at most that it does not have.
    texts = iter(spec.prompt_lengths.sample(2 * n, prompt_rng).tolist())
    answers = iter(spec.output_lengths.sample(2 * n, output_rng).tolist())
    plans: list[_Plan] = []
    clipped = ended_early = 0
    for prefix, count in zip(prefixes, spec.turns.sample(n, count_rng).tolist(), strict=True):
        history_tokens = len(prefix)
        for place in range(min(count, n - len(plans))):
            text_tokens = next(texts)
            wanted = history_tokens + text_tokens, next(answers)
            fitting = fitting_lengths(
                *wanted, limit, spec.clip, f"workload {spec.name}: request {len(plans)}"
            )
            if fitting != wanted and place:
                ended_early += 1
                break
            clipped += fitting != wanted
            think_time_s = spec.think_time_s * float(think_rng.standard_exponential()) if place else 0.0
            plans.append(
                _Plan(
                    prefix=None if place else prefix,
                    prompt_tokens=fitting[0],
                    text_tokens=min(text_tokens, fitting[0]),
                    answer_tokens=fitting[1],
                    think_time_s=think_time_s,
                )
            )
            history_tokens = sum(fitting)
    return plans, clipped, ended_early
