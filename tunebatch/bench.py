"""One run: a workload, a strategy and an executor give a result. Everything above goes through here."""

from __future__ import annotations

import contextlib
import gc
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from statistics import mean
from typing import Any, Protocol

from tunebatch.engine.assemble import engine_for
from tunebatch.engine.clock import Clock, ReplayClock, VirtualClock
from tunebatch.engine.engine import RequestSource
from tunebatch.engine.limits import LatencyLimits
from tunebatch.engine.plan import Executor
from tunebatch.engine.records import EndReason, RequestRecord, RunRecord
from tunebatch.engine.request import Request, why_never_fits
from tunebatch.engine.speculation.acceptance import SyntheticAcceptance
from tunebatch.engine.strategies import Strategy
from tunebatch.measure.conditions import conditions
from tunebatch.measure.environment import environment
from tunebatch.measure.latency import tpot_s
from tunebatch.measure.metrics import summarize
from tunebatch.measure.result import RunResult
from tunebatch.measure.slo import EarlyStop, Limit, Slo, check
from tunebatch.measure.telemetry.beside import Instruments, telemetry
from tunebatch.measure.telemetry.cpu import CpuTelemetry
from tunebatch.measure.telemetry.gpu import GpuTelemetry
from tunebatch.measure.warmup import num_warmup
from tunebatch.workload.likeness import likeness

NOTHING = Instruments()


class Workload(Protocol):
    """What a run needs to know of its traffic."""

    @property
    def requests(self) -> tuple[Request, ...]: ...

    @property
    def rate_per_s(self) -> float | None: ...

    @property
    def at_once(self) -> bool: ...

    @property
    def description(self) -> str: ...

    @property
    def notes(self) -> tuple[str, ...]: ...

    @property
    def seed(self) -> int: ...

    def source(self) -> RequestSource: ...

    def fingerprint(self) -> str: ...


class DoesNotFitError(ValueError):
    """A request of the workload can never be served by this executor; one line for the user."""


def measure(
    workload: Workload,
    strategy: Strategy,
    executor: Executor,
    *,
    slo: Slo | None = None,
    clock: Callable[[], Clock] = ReplayClock,
    stop_early: bool = False,
    glimpse_s: float | None = None,
    model: Mapping[str, Any] | None = None,
    instruments: Instruments = NOTHING,
    acceptance: tuple[float, ...] = (),
    overlap: bool | None = None,
) -> RunResult:
    """Serve the workload once and measure it.

    Args:
        slo: Judges the run; needed for goodput.
        clock: Makes the run's clock; by default a `ReplayClock`: measured steps, skipped idle time.
        stop_early: End the run as soon as it certainly misses the SLO.
        glimpse_s: End it after so many seconds, with what was served by then: enough to tell a
            throughput roughly, whatever the length of the workload.
        model: Facts about the model for the result file.
        instruments: What is looked at beside the run; in virtual time nothing is.
        acceptance: Rates of a `SyntheticAcceptance`, which goes by the workload's seed; empty: drafts are
            accepted by the models' own tokens.
        overlap: Plan a step while the device computes the one before; by default where that gains time.

    Raises:
        DoesNotFitError: A request exceeds the context or the whole KV cache.
        OutOfDeviceMemoryError: A step did not fit on the device.
    """
    for request in workload.requests:
        if why := why_never_fits(request, executor.num_blocks, executor.block_size, executor.max_context):
            raise DoesNotFitError(why)
    executor.reset()
    drawn = SyntheticAcceptance(acceptance, workload.seed) if acceptance else None
    warmup = num_warmup(len(workload.requests), workload.at_once)
    judge = SloWatcher(slo, len(workload.requests), warmup) if stop_early and slo is not None else None
    watcher = judge if glimpse_s is None else Glimpse(glimpse_s)
    with _without_gc(), CpuTelemetry() as cpu, GpuTelemetry(instruments.gpu) as gpu:
        # The clock runs from here: requests that are due at once wait for the engine, not for us.
        time = clock()
        engine = engine_for(
            strategy, executor, workload.source(), time, watcher, latency_limits(slo), drawn, overlap
        )
        record = engine.run()
    _add_never_arrived(record, workload)
    metrics = summarize(record, slo, warmup)
    facts = environment(instruments.gpu)
    if cpu.use is not None:
        facts["foreign_cpu_share"] = cpu.use.foreign_cpu_share
    is_real = time.name != VirtualClock.name
    return RunResult(
        strategy=strategy.name,
        knobs=dict(strategy.shown_knobs),
        workload=_facts_of(workload),
        model=dict(model or {}),
        environment=facts,
        slo=list(slo.texts()) if slo is not None else [],
        metrics=metrics,
        verdict=check(metrics, slo, judge.missed if judge is not None else None) if slo is not None else None,
        conditions=conditions(metrics, time.name, workload.seed, record.speculation, record.overlap),
        speculation=record.speculation,
        telemetry=telemetry(record, metrics, instruments, cpu.use, gpu.use) if is_real else None,
        record=record,
    )


def _facts_of(workload: Workload) -> dict[str, Any]:
    """What the result file tells of the traffic."""
    return {
        "description": workload.description,
        "fingerprint": workload.fingerprint(),
        "likeness": likeness(workload.requests),
        "num_requests": len(workload.requests),
        "mean_output_tokens": mean(request.max_tokens for request in workload.requests),
        "rate_per_s": workload.rate_per_s,
        "seed": workload.seed,
        "notes": list(workload.notes),
    }


def latency_limits(slo: Slo | None) -> LatencyLimits:
    """What an SLO leaves a policy: the tightest limit, whatever its statistic; a gap between tokens is one
    step, so a limit on the ITL is one on the TPOT."""
    limits = list(slo or ())
    return LatencyLimits(
        ttft_s=min((limit.limit_s for limit in limits if limit.metric == "ttft"), default=None),
        tpot_s=min((limit.limit_s for limit in limits if limit.metric in ("tpot", "itl")), default=None),
    )


class SloWatcher:
    """Ends a run that certainly misses the SLO.

    A request that has waited for its first token longer than the limit on TTFT has missed it before it
    is served, so an overloaded run ends soon. Requests come in order of arrival and become overdue in
    that order: each is looked at once, and a step costs nothing for those that wait.

    Args:
        num_warmup: So many, the first to arrive, miss nothing, however long they wait.
    """

    def __init__(self, slo: Slo, num_requests: int, num_warmup: int = 0) -> None:
        self._early_stop = EarlyStop(slo, num_requests - num_warmup)
        self._num_warmup = num_warmup
        self._warmup: set[int] = set()
        limits = [limit.limit_s for limit in slo if limit.metric == "ttft"]
        self._patience_s = max(limits, default=None)
        self._arrived: deque[tuple[float, int]] = deque()  # that are not overdue yet, oldest first
        self._waiting: set[int] = set()
        self._overdue: set[int] = set()
        self.missed: Limit | None = None

    def arrived(self, request: Request) -> None:
        if len(self._warmup) < self._num_warmup:
            self._warmup.add(request.id)
        elif self._patience_s is not None:
            self._arrived.append((request.arrival_s, request.id))
            self._waiting.add(request.id)

    def first_token(self, record: RequestRecord, now: float) -> None:
        if record.id in self._warmup:
            return
        self._waiting.discard(record.id)
        self._overdue.discard(record.id)
        self._early_stop.observe_first_token(now - record.arrival_s)

    def ended(self, record: RequestRecord, now: float) -> None:
        if record.id in self._warmup:
            return
        self._waiting.discard(record.id)
        self._overdue.discard(record.id)
        if record.completed:
            self._early_stop.observe_end(tpot_s(record), record.end_s - record.arrival_s)
        elif record.end_reason is EndReason.CANCELLED and record.token_times_s:
            self._early_stop.observe_end(tpot_s(record), None)
        elif record.end_reason is EndReason.CANCELLED:
            self._early_stop.observe_hung_up()

    def should_stop(self, now: float) -> bool:
        if self._patience_s is not None:
            arrived = self._arrived
            while arrived and now - arrived[0][0] > self._patience_s:
                _, request_id = arrived.popleft()
                if request_id in self._waiting:
                    self._overdue.add(request_id)
        self.missed = self._early_stop.certain_miss(len(self._overdue))
        return self.missed is not None


class Glimpse:
    """Ends a run after a while, but not before a few requests are through."""

    _FEW = 8

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._completed = 0

    def arrived(self, request: Request) -> None: ...

    def first_token(self, record: RequestRecord, now: float) -> None: ...

    def ended(self, record: RequestRecord, now: float) -> None:
        self._completed += record.completed

    def should_stop(self, now: float) -> bool:
        return now >= self._seconds and self._completed >= self._FEW


@contextlib.contextmanager
def _without_gc() -> Iterator[None]:
    """A collection in the middle of a step would be measured as the strategy's."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


def _add_never_arrived(record: RunRecord, workload: Workload) -> None:
    """Requests that a stopped run never saw are unfinished ones, not absent ones."""
    seen = {request.id for request in record.requests}
    record.requests += [
        RequestRecord(request.id, request.arrival_s, len(request.prompt), request.max_tokens)
        for request in workload.requests
        if request.id not in seen
    ]
