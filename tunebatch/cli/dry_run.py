"""``tunebatch sweep --dry-run``: what would be measured, whether it suffices, and about how long it takes."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from tunebatch.cli.errors import OK

if TYPE_CHECKING:
    from tunebatch.cli.session import Session
    from tunebatch.engine.strategies import Strategy
    from tunebatch.profile import Profile

# Runs of the workload: one all at once and about six rates for a default; for a candidate of the
# confirmation about four rates on each of two fresh seeds.
_RUNS_OF_A_DEFAULT, _RUNS_OF_A_CANDIDATE = 7, 8
_ALONE = 4  # requests that show the pace of a strategy without batches


def dry_run(asked: Profile, session: Session, json: bool) -> int:
    """Serves a few requests under every strategy for the prediction; no strategy's capacity is measured."""
    from tunebatch.cli import output
    from tunebatch.cli.traffic import needed_samples
    from tunebatch.tune.space import Space

    workload, search = session.workload(), asked.search
    space = Space(search.strategies, asked.device.max_slots)
    run_s = {name: _predicted_run_s(session, space.default(name)) for name in search.strategies}
    least_s = _least_s(list(run_s.values()), search.objective, search.confirm)
    plan: dict[str, Any] = {
        "schema": "tunebatch.plan.v1",
        "strategies": search.strategies,
        "objective": search.objective,
        "max_trials": search.trials,
        "max_time_s": search.time,
        "predicted_run_s": run_s,
        "predicted_least_time_s": least_s,
        "workload": workload.description,
        "notes": list(workload.notes),
        "requests": len(workload.requests),
        "slo": asked.slo.texts(),
        "samples_needed": dict(needed_samples(asked)),
    }
    if json:
        output.print_json(plan)
        return OK
    print(f"search:    {', '.join(search.strategies)}; objective {search.objective}")
    print(f"budget:    {search.time:g} s and {search.trials} trials; a trial that has begun is finished")
    each = ", ".join(f"{name} {_about(seconds)}" for name, seconds in run_s.items())
    print(f"predicted: one run of the workload takes: {each}")
    short = _too_short(least_s, search.time)
    print(f"predicted: the defaults and the confirmation take about {_about(least_s)}{short}")
    print(f"requests:  {workload.description}")
    for note in workload.notes:
        print(f"           {note}")
    for name, needed in needed_samples(asked):
        print(f"samples:   {name} needs {needed} requests, there are {len(workload.requests)}: enough")
    print("no configuration was measured")
    return OK


def _predicted_run_s(session: Session, chosen: Strategy) -> float:
    """As if every batch took as long as the first."""
    workload = session.workload()
    batch = int(dict(chosen.knobs).get("max_batch_size", _ALONE))
    served = min(batch, len(workload.requests))
    began = time.monotonic()
    session.measure_first(chosen, served)
    return (time.monotonic() - began) * len(workload.requests) / served


def _least_s(run_s: list[float], objective: str, confirm: int) -> float:
    if objective == "throughput":
        return sum(run_s) + 2 * confirm * min(run_s)
    return _RUNS_OF_A_DEFAULT * sum(run_s) + _RUNS_OF_A_CANDIDATE * confirm * min(run_s)


def _about(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _too_short(least_s: float, time_s: float) -> str:
    if least_s <= time_s:
        return ""
    return f", more than there is: give --time {max(1, round(1.5 * least_s / 60))}m, or fewer --requests"
