"""``tunebatch doctor --check-clock``: does a run that skips idle time measure what one in real time does?"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from tunebatch.cli.errors import ENVIRONMENT, OK

if TYPE_CHECKING:
    from tunebatch.measure.limits import MetricName, StatisticName
    from tunebatch.measure.result import RunResult

SECONDS = 20.0  # for which requests arrive
_LOAD = 0.5  # of the saturated rate: half of the time is idle, and so skipped
_ORDER = ("replay", "wall", "wall", "replay")  # a machine that gets slower slows both
_NOISE = 2.0
_TOLERANCE = {"p50": 0.03, "p90": 0.10}
_WAKING_S = 0.002
_COMPARED: tuple[tuple[StatisticName, MetricName], ...] = (
    ("p50", "ttft"),
    ("p90", "ttft"),
    ("p50", "tpot"),
    ("p90", "tpot"),
)


def check_clock() -> dict[str, Any]:
    """Serves the same requests twice on the replay clock and twice on the wall clock.

    Two runs on one clock tell how much runs differ anyway on this machine. The clocks agree where they
    differ by no more than twice that, or by 3 % of a median and 10 % of a 90th percentile. A TTFT may
    differ by two milliseconds besides, which is what waking up may take; the time between tokens may not.
    """
    runs = _measured()
    observed = [_latencies(run) for _, run in runs]
    told = [name for name in observed[0] if all(name in one for one in observed)]
    between, within = {}, {}
    apart = []
    for name in told:
        first, wall, wall_again, again = (one[name] for one in observed)
        between[name] = (_ratio(wall, first) + _ratio(wall_again, again)) / 2
        within[name] = max(abs(_ratio(again, first)), abs(_ratio(wall_again, wall)))
        statistic, metric = name.split("_")
        late_s = abs(wall + wall_again - first - again) / 2
        if abs(between[name]) > max(_NOISE * within[name], _TOLERANCE[statistic]) and not (
            metric == "ttft" and late_s <= _WAKING_S
        ):
            apart.append(name)
    return {
        "seconds": SECONDS,
        "rate_per_s": runs[0][1].workload["rate_per_s"],
        "requests": runs[0][1].metrics.num_requests,
        "runs": [{"clock": clock, **one} for (clock, _), one in zip(runs, observed, strict=True)],
        "wall_over_replay": between,
        "same_clock_twice": within,
        "agree": bool(told) and not apart,
        "verdict": _verdict(told, apart, between, within),
    }


def print_check(found: dict[str, Any]) -> int:
    """The latencies of each run, how far the clocks are apart, and the verdict; the exit code."""
    from tunebatch.report.rows import duration

    names = [f"{statistic}_{metric}" for statistic, metric in _COMPARED]
    rows = [("clock", *(name.replace("_", " ") for name in names))]
    rows += [(run["clock"], *(duration(run.get(name)) for name in names)) for run in found["runs"]]
    for title, ratios in (
        ("wall over replay", found["wall_over_replay"]),
        ("one clock twice", found["same_clock_twice"]),
    ):
        rows.append((title, *(_percent(ratios[name]) if name in ratios else "-" for name in names)))
    print(
        f"{found['requests']} requests at {found['rate_per_s']:.3g} req/s, half of what is served saturated"
    )
    widths = [max(len(row[column]) for row in rows) for column in range(len(names) + 1)]
    for first, *rest in rows:
        cells = (f"{cell:>{width}}" for cell, width in zip(rest, widths[1:], strict=True))
        print("  ".join((f"{first:<{widths[0]}}", *cells)))
    print(found["verdict"])
    return OK if found["agree"] else ENVIRONMENT


def _measured() -> list[tuple[str, RunResult]]:
    from tunebatch.cli.session import Session
    from tunebatch.cli.traffic import checked_spec
    from tunebatch.engine.strategies import strategy
    from tunebatch.profile import load_profile
    from tunebatch.tune.gauge import GLIMPSE_S, saturated_rate

    asked = load_profile("quickstart")
    session, chosen = Session.open(asked, checked_spec(asked)), strategy("continuous")
    rate = _LOAD * saturated_rate(session.measure(chosen, None, glimpse_s=GLIMPSE_S))
    runs = []
    for session.clock in _ORDER:
        runs.append((session.clock, session.measure(chosen, rate, least_s=SECONDS)))
    return runs


def _latencies(run: RunResult) -> dict[str, float]:
    """Those with enough samples, in seconds."""
    found = {}
    for statistic, metric in _COMPARED:
        value_s = run.metrics.distribution(metric).statistic(statistic).value_s
        if value_s is not None:
            found[f"{statistic}_{metric}"] = value_s
    return found


def _ratio(one: float, other: float) -> float:
    """As a logarithm, which is about the difference as a share."""
    return math.log(max(one, 1e-9) / max(other, 1e-9))


def _verdict(told: list[str], apart: list[str], between: dict[str, float], within: dict[str, float]) -> str:
    if not told:
        return "not known: too few requests were served for any percentile"
    most, anyway = (max(map(abs, ratios.values())) for ratios in (between, within))
    said = f"differ by up to {_percent(most, sign='')}, two runs on one by up to {_percent(anyway, sign='')}"
    if apart:
        return f"the clocks do not agree on {', '.join(apart)}: they {said}; measure with run --clock wall"
    return f"the clocks agree: they {said}"


def _percent(ratio: float, sign: str = "+") -> str:
    return f"{100 * math.expm1(ratio):{sign}.0f} %"
