"""One run: a workload, a strategy and an executor give a result. Everything above goes through here."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from typing import Any, Protocol

from tunebatch.engine.clock import Clock, ReplayClock
from tunebatch.engine.engine import Engine, RequestSource
from tunebatch.engine.plan import Executor
from tunebatch.engine.queues import why_never_fits
from tunebatch.engine.records import RequestRecord, RunRecord
from tunebatch.engine.request import Request
from tunebatch.engine.strategies import Strategy
from tunebatch.measure.environment import CpuTelemetry, environment
from tunebatch.measure.latency import tpot_s
from tunebatch.measure.metrics import summarize
from tunebatch.measure.result import RunResult
from tunebatch.measure.slo import EarlyStop, Limit, Slo, check


class Workload(Protocol):
    """What a run needs to know of its traffic."""

    @property
    def requests(self) -> tuple[Request, ...]: ...

    @property
    def rate_per_s(self) -> float | None: ...

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
    clock: Clock | None = None,
    stop_early: bool = False,
    model: Mapping[str, Any] | None = None,
) -> RunResult:
    """Serve the workload once and measure it.

    Args:
        slo: Judges the run; needed for goodput.
        clock: By default a `ReplayClock`: measured steps, skipped idle time.
        stop_early: End the run as soon as it certainly misses the SLO.
        model: Facts about the model for the result file.

    Raises:
        DoesNotFitError: A request exceeds the context or the whole KV cache.
        OutOfDeviceMemoryError: A step did not fit on the device.
    """
    for request in workload.requests:
        if why := why_never_fits(request, executor.num_blocks, executor.block_size, executor.max_context):
            raise DoesNotFitError(why)
    executor.reset()
    watcher = SloWatcher(slo, len(workload.requests)) if stop_early and slo is not None else None
    engine = Engine(executor, strategy.make_policy(), workload.source(), clock or ReplayClock(), watcher)
    with CpuTelemetry() as telemetry:
        record = _run_without_gc(engine)
    _add_never_arrived(record, workload)
    metrics = summarize(record, slo)
    facts = environment()
    if telemetry.use is not None:
        facts["foreign_cpu_share"] = telemetry.use.foreign_cpu_share
    return RunResult(
        strategy=strategy.name,
        knobs=dict(strategy.knobs),
        workload={
            "description": workload.description,
            "fingerprint": workload.fingerprint(),
            "num_requests": len(workload.requests),
            "rate_per_s": workload.rate_per_s,
            "seed": workload.seed,
            "notes": list(workload.notes),
        },
        model=dict(model or {}),
        environment=facts,
        slo=list(slo.texts()) if slo is not None else [],
        metrics=metrics,
        verdict=check(metrics, slo) if slo is not None else None,
        record=record,
    )


class SloWatcher:
    """Ends a run that certainly misses the SLO."""

    def __init__(self, slo: Slo, num_requests: int) -> None:
        self._early_stop = EarlyStop(slo, num_requests)
        self._num_requests = num_requests
        self.missed: Limit | None = None

    def first_token(self, record: RequestRecord, now: float) -> None:
        self._early_stop.observe_first_token(now - record.arrival_s)

    def ended(self, record: RequestRecord, now: float) -> None:
        if record.completed:
            self._early_stop.observe_end(tpot_s(record), record.end_s - record.arrival_s)

    def should_stop(self, now: float) -> bool:
        self.missed = self._early_stop.certain_miss()
        return self.missed is not None


def _run_without_gc(engine: Engine) -> RunRecord:
    """A collection in the middle of a step would be measured as the strategy's."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        return engine.run()
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
