"""A workload made real: the very requests that a run serves."""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from tunebatch.engine.request import Request
from tunebatch.workload.sharing import sharing_text
from tunebatch.workload.source import ClosedLoop, OpenLoop, RequestSource, arrived_at
from tunebatch.workload.turns import MultiTurn, Turn


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests, when they arrive, and what was done to make them.

    Attributes:
        name: Short name.
        requests: By id, which is also the order of arrival. In a closed loop all arrivals are 0, and
            `source` schedules them.
        patterns: The requests as if each had arrived at 0, in the same order.
        rate_per_s: Mean request rate; None when there is no schedule (all at once, closed loop).
        unit_arrivals_s: The arrivals as they would be at one request a second; None when there is no
            pattern to scale.
        process: Words for the arrivals, such as ``Poisson``.
        lengths: Words for the token counts.
        seed: What the random parts were drawn with.
        notes: A sentence for each thing that was clipped, scaled, dropped or ignored, with counts.
        concurrency: Clients of a closed loop, or None.
        think_time_s: Of those clients; in conversations their mean.
        shared_share: Share of the prompt tokens that a perfect prefix cache would not compute, 0 to 1.
        turns: What each request adds to its conversation, by id; None: there are none. The prompts of
            later turns then hold answers that only stand for the real ones.
        thinks: Whether users of a conversation think before they send the next turn.
        hang_ups: Words for the clients that hang up, or nothing.
    """

    name: str
    requests: tuple[Request, ...]
    patterns: tuple[Request, ...]
    rate_per_s: float | None
    unit_arrivals_s: tuple[float, ...] | None
    process: str
    lengths: str
    seed: int
    notes: tuple[str, ...] = ()
    concurrency: int | None = None
    think_time_s: float = 0.0
    shared_share: float = 0.0
    turns: tuple[Turn, ...] | None = None
    thinks: bool = True
    hang_ups: str = ""

    @property
    def at_once(self) -> bool:
        """There is nothing to wait for but answers: the load is full from the beginning."""
        return self.rate_per_s is None and self.concurrency is None

    @property
    def build_up_s(self) -> float:
        """How long the load of conversations takes to be as high as the rate says: the pauses of one, on
        average; answers, whose time nobody knows, come on top. 0 without conversations."""
        if self.turns is None or not self.thinks:
            return 0.0
        return sum(turn.think_time_s for turn in self.turns) / sum(turn.first for turn in self.turns)

    @property
    def description(self) -> str:
        """One line for people."""
        if self.concurrency is not None:
            think = f", {self.think_time_s:g} s between answer and next" if self.think_time_s else ""
            arrivals = f"{self.concurrency} at a time (closed loop{think})"
        elif self.rate_per_s is None:
            arrivals = "all at once"
        else:
            arrivals = f"{self.process} at {self.rate_per_s:.4g} req/s"
        requests = f"{len(self.requests)} requests"
        if self.turns is not None:
            think = f", {self.think_time_s:g} s between answer and next turn" if self.thinks else ""
            requests += f" in {sum(self.turns[r.id].first for r in self.requests)} conversations{think}"
        parts = [requests, arrivals, self.lengths, sharing_text(self.shared_share), self.hang_ups]
        return f"{self.name}: {', '.join(part for part in parts if part)}, seed {self.seed}"

    def at_rate(self, rate_per_s: float) -> Workload:
        """The same requests in the same rhythm at another mean rate; a recorded trace is stretched in time.

        A client still hangs up as long after its request's arrival as before, and a user thinks as long.
        In conversations the starts are moved, so that the later turns, if they came at once, had that rate
        together with the first ones.

        Raises:
            ValueError: The rate is not positive and finite, so low that a request would never arrive, or
                there is no rhythm to scale.
        """
        if not (math.isfinite(rate_per_s) and rate_per_s > 0):
            raise ValueError(f"workload {self.name}: rate is {rate_per_s} requests/s, must be above 0")
        if self.unit_arrivals_s is None:
            how = "a closed loop" if self.concurrency is not None else "all at once"
            raise ValueError(
                f"workload {self.name}: its requests come {how}, so it has no rate to change; "
                "give it an arrival process, for example 'poisson'"
            )
        arrivals = [arrival / rate_per_s for arrival in self.unit_arrivals_s]
        return replace(self, requests=arriving(self.patterns, arrivals), rate_per_s=rate_per_s, thinks=True)

    def saturated(self) -> Workload:
        """The same requests, all at 0: what the system can do when there is always work.

        A later turn of a conversation comes at once after the answer before it.
        """
        think_time_s = 0.0 if self.turns is None else self.think_time_s
        return replace(
            self,
            requests=self.patterns,
            rate_per_s=None,
            concurrency=None,
            think_time_s=think_time_s,
            thinks=False,
        )

    def source(self) -> RequestSource:
        """A fresh source for one run."""
        if self.concurrency is not None:
            return ClosedLoop(self.requests, self.concurrency, self.think_time_s)
        if self.turns is not None:
            return MultiTurn(self.requests, self.turns, self.thinks)
        return OpenLoop(self.requests)

    def fingerprint(self) -> str:
        """SHA-256, in hex, of all that a run could notice: ids, prompts, limits, times, sampling, loop."""
        digest = hashlib.sha256(
            struct.pack("<qd", -1 if self.concurrency is None else self.concurrency, self.think_time_s)
        )
        for request in self.requests:
            sampling = request.sampling
            cancel_at_s = math.inf if request.cancel_at_s is None else request.cancel_at_s
            digest.update(
                struct.pack(
                    "<qqqdd?", request.id, len(request.prompt), request.max_tokens,
                    request.arrival_s, cancel_at_s, request.ignore_eos,
                )
            )  # fmt: skip
            digest.update(struct.pack("<dd", sampling.temperature, sampling.top_p))
            digest.update(struct.pack("<qq", sampling.top_k, sampling.seed))
            digest.update(np.asarray(request.prompt, "<i8").tobytes())
            if self.turns is not None:
                turn = self.turns[request.id]
                digest.update(struct.pack("<?d", turn.first, turn.think_time_s * self.thinks))
        return digest.hexdigest()


def arriving(requests: Iterable[Request], arrivals_s: Iterable[float]) -> tuple[Request, ...]:
    """The requests moved to new arrivals, one each.

    Raises:
        ValueError: A request would never arrive, so that a run would wait for it forever.
    """
    moved = tuple(arrived_at(request, at) for request, at in zip(requests, arrivals_s, strict=True))
    for request in moved:
        if not math.isfinite(request.arrival_s):
            raise ValueError(
                f"request {request.id} would arrive at {request.arrival_s} s, which is no time; "
                "use a higher rate or shorter gaps"
            )
    return moved


def lengths_text(requests: Iterable[Request]) -> str:
    """Median and p90 of prompt and output tokens."""
    counts = np.array([(len(request.prompt), request.max_tokens) for request in requests])
    (prompt, output), (prompt_p90, output_p90) = np.percentile(counts, [50, 90], axis=0)
    prompts = f"prompts of {prompt:.0f} tokens (p90 {prompt_p90:.0f})"
    return f"{prompts}, outputs of {output:.0f} (p90 {output_p90:.0f})"
