"""What traffic is wanted, as a checked description; `build` makes it real."""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NoReturn, get_args

from tunebatch.workload.arrivals import check_burstiness
from tunebatch.workload.build import build
from tunebatch.workload.lengths import LengthLaw
from tunebatch.workload.realised import Workload

__all__ = ["ArrivalKind", "Workload", "WorkloadSpec", "build"]

ArrivalKind = Literal["poisson", "gamma", "constant", "burst", "closed", "trace"]

# Thirty years; no sum of such waits is infinite.
_LONGEST_WAIT_S = 1e9

# Beyond it the first prefix is the only one.
_STEEPEST_SKEW = 10.0


@dataclass(frozen=True, slots=True)
class WorkloadSpec:
    """A description of traffic.

    Lengths come from the two laws, or from a trace file. A trace brings its arrivals (``trace``), or
    only its requests, which then arrive by one of the other processes.

    With `prefix_lengths` each prompt is one of a few shared beginnings and a text of its own. With `turns`
    requests come in conversations, each turn of which has the prompt before it, the answer to that and a
    text of its own for a prompt; the arrivals are then those of first turns.

    Attributes:
        name: Short name for people.
        arrivals: ``poisson``, ``gamma``, ``constant``, ``burst``, ``closed`` or ``trace``.
        rate_per_s: Mean requests a second; a trace is rescaled to it.
        burstiness: Shape of the gamma gaps: 1 is Poisson, less is burstier.
        burst_size: Requests of one burst; None: all of them.
        burst_gap_s: Between bursts; None: as the rate demands, or without a rate all at once.
        concurrency: Clients of a closed loop.
        think_time_s: Of a client, between an answer and its next request; in conversations the mean of an
            exponential law.
        prompt_lengths: Law of the prompt tokens; those of a request's own text, where there is more.
        output_lengths: Law of the output tokens.
        prefix_lengths: Law of the tokens of a shared beginning, or None.
        num_prefixes: Different shared beginnings.
        prefix_skew: Exponent of Zipf's law of their popularity; 0: all are equally popular.
        turns: Law of the requests of a conversation, or None.
        cancel: Share of requests whose client hangs up, 0 to 1; where a trace says who does, it holds.
        cancel_after_s: From arrival to hanging up; the mean of an exponential law.
        num_requests: How many; with a trace, at most how many (None: all of the slice).
        seed: For everything that is drawn.
        ignore_eos: Generate the full output length whatever the model says; a trace can say otherwise.
        trace_file: Recorded requests.
        trace_format: A name in `TRACE_FORMATS`; None: found from the file.
        trace_start: Rows of the trace to leave out at its beginning.
        trace_limit: Rows to read at most.
        max_context: Tokens that prompt and output may have together, if less than the model's context.
        clip: Shorten what does not fit; otherwise it is an error.
        notes: What was done to this description, to be passed on.

    Raises:
        ValueError: A value is impossible, missing or of no use; one line that names the field.
    """

    name: str
    arrivals: ArrivalKind = "poisson"
    rate_per_s: float | None = None
    burstiness: float = 1.0
    burst_size: int | None = None
    burst_gap_s: float | None = None
    concurrency: int | None = None
    think_time_s: float = 0.0
    prompt_lengths: LengthLaw | None = None
    output_lengths: LengthLaw | None = None
    prefix_lengths: LengthLaw | None = None
    num_prefixes: int = 1
    prefix_skew: float = 0.0
    turns: LengthLaw | None = None
    cancel: float = 0.0
    cancel_after_s: float = 2.0
    num_requests: int | None = None
    seed: int = 0
    ignore_eos: bool = True
    trace_file: Path | None = None
    trace_format: str | None = None
    trace_start: int = 0
    trace_limit: int | None = None
    max_context: int | None = None
    clip: bool = True
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        kinds = get_args(ArrivalKind)
        if self.arrivals not in kinds:
            near = difflib.get_close_matches(str(self.arrivals), kinds, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"use one of {', '.join(kinds)}"
            self._refuse(f"arrivals is {self.arrivals!r}; {hint}")
        self._check_numbers()
        if self.arrivals in ("poisson", "gamma", "constant") and self.rate_per_s is None:
            self._refuse(f"{self.arrivals} arrivals need rate_per_s, for example 4.0")
        if self.arrivals == "burst" and self.rate_per_s is not None and self.burst_gap_s is not None:
            self._refuse("a burst has either rate_per_s or burst_gap_s; leave one out")
        if self.arrivals == "closed" and self.concurrency is None:
            self._refuse("a closed loop needs concurrency, for example 16")
        if self.arrivals == "trace" and self.trace_file is None:
            self._refuse("arrivals of a trace need trace_file")
        laws = (self.prompt_lengths, self.output_lengths)
        if self.trace_file is not None and laws != (None, None):
            self._refuse("the lengths come from trace_file; leave out prompt_lengths and output_lengths")
        if self.trace_file is None and None in laws:
            self._refuse(
                "needs prompt_lengths and output_lengths, for example 'uniform:16-256', or trace_file"
            )
        if self.trace_file is None and self.num_requests is None:
            self._refuse("needs num_requests, for example 1000")
        self._check_shared()

    def _check_shared(self) -> None:
        if self.trace_file is not None and (self.prefix_lengths, self.turns) != (None, None):
            self._refuse("the prompts come from trace_file; leave out prefix_lengths and turns")
        if self.prefix_lengths is None and (self.num_prefixes, self.prefix_skew) != (1, 0.0):
            self._refuse("num_prefixes and prefix_skew are of no use without prefix_lengths")
        if self.turns is not None and self.arrivals == "closed":
            self._refuse(
                "conversations have their own loop; use another arrival process, for example 'poisson'"
            )

    def _check_numbers(self) -> None:
        for field, value, low in (
            ("burst_size", self.burst_size, 1),
            ("concurrency", self.concurrency, 1),
            ("num_prefixes", self.num_prefixes, 1),
            ("num_requests", self.num_requests, 1),
            ("trace_start", self.trace_start, 0),
            ("trace_limit", self.trace_limit, 1),
            ("max_context", self.max_context, 2),
            ("seed", self.seed, 0),
        ):
            if value is not None and value < low:
                self._refuse(f"{field} is {value}, must be at least {low}")
        for field, number in (
            ("rate_per_s", self.rate_per_s),
            ("burst_gap_s", self.burst_gap_s),
        ):
            if number is not None and not 0 < number < math.inf:
                self._refuse(f"{field} is {number}, must be above 0")
        if not 0 <= self.think_time_s <= _LONGEST_WAIT_S:
            self._refuse(f"think_time_s is {self.think_time_s}, must be from 0 to {_LONGEST_WAIT_S:g}")
        if not 0 <= self.cancel <= 1:
            self._refuse(f"cancel is {self.cancel}, must be from 0 to 1")
        if not 0 < self.cancel_after_s <= _LONGEST_WAIT_S:
            self._refuse(f"cancel_after_s is {self.cancel_after_s}, must be above 0 and at most 1e+09")
        if not 0 <= self.prefix_skew <= _STEEPEST_SKEW:
            self._refuse(f"prefix_skew is {self.prefix_skew}, must be from 0 to {_STEEPEST_SKEW:g}")
        try:
            check_burstiness(self.burstiness)
        except ValueError as error:
            self._refuse(str(error))

    def _refuse(self, problem: str) -> NoReturn:
        raise ValueError(f"workload {self.name}: {problem}")
