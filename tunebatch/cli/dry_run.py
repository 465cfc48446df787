"""``tunebatch sweep --dry-run``: what would be measured, whether it suffices, and about how long it takes."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from tunebatch.cli.errors import OK
from tunebatch.cli.predicted_time import about, least_time_s, runs_at, too_short

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tunebatch.cli.session import Session
    from tunebatch.engine.strategies import Strategy
    from tunebatch.profile import Profile
    from tunebatch.tune.space import Space

_ALONE = 4  # requests that show the pace of a strategy without batches


def dry_run(
    asked: Profile,
    session: Session,
    least_run_s: float,
    at_once: bool,
    left_out: dict[str, str],
    json: bool,
) -> int:
    """Serves a few requests under every strategy for the prediction, and under the fastest with each feature;
    no strategy's capacity is measured.

    Args:
        least_run_s: How long requests arrive in a run that tells a capacity, however few would do.
        at_once: How requests come in the runs that the SLO is held against.
        left_out: Features that will not be searched, and why.
    """
    from tunebatch.cli import output
    from tunebatch.cli.traffic import needed_requests
    from tunebatch.measure.warmup import num_warmup
    from tunebatch.tune.space import Space
    from tunebatch.tune.variants import NONE

    workload, search = session.workload(), asked.search
    space = Space(search.strategies, asked.device.max_slots, features=search.features, ranges=search.knobs)
    pace = {name: _predicted_rate(session, space.default(name)) for name in search.strategies}
    single = _single_features(space, pace)
    session.load_draft_for(single)
    pace |= {one.name: _predicted_rate(session, one) for one in single}
    served, run_s = runs_at(pace, session, search, least_run_s)
    # What a feature is worth is confirmed, too, on one seed at least.
    least_s = least_time_s([*run_s.values(), *(run_s[one.name] for one in single)], search)
    plan: dict[str, Any] = {
        "schema": "tunebatch.plan.v1",
        "strategies": search.strategies,
        "features": search.features,
        "features_left_out": left_out,
        "switches": {group: [NONE, *members] for group, members in space.groups.items()},
        "variants": list(space.variants_of_all),
        "knob_ranges": search.knobs,
        "sampler": search.sampler,
        "objective": search.objective,
        "max_trials": search.trials,
        "max_time_s": search.time,
        "least_run_s": least_run_s,
        "predicted_run_s": run_s,
        "predicted_run_requests": served,
        "predicted_least_time_s": least_s,
        "workload": workload.description,
        "notes": list(workload.notes),
        "requests": len(workload.requests),
        "slo": asked.slo.texts(),
        "warmup_requests": num_warmup(len(workload.requests), at_once),
        "requests_needed": dict(needed_requests(asked, at_once)),
    }
    if json:
        output.print_json(plan)
    else:
        _show(asked, plan)
    return OK


def _show(asked: Profile, plan: dict[str, Any]) -> None:
    from tunebatch.cli.feature_choice import left_out_lines
    from tunebatch.cli.sweep_words import search_lines

    search, few, served = asked.search, plan["requests"], plan["predicted_run_requests"]
    run_s, least_s = plan["predicted_run_s"], plan["predicted_least_time_s"]
    print(f"search:    {', '.join(search.strategies)}; objective {search.objective}")
    for line in search_lines(search):
        print(f"           {line}")
    if search.features:
        print(f"features:  {_switches(plan)}")
    for line in left_out_lines(plan["features_left_out"]):
        print(f"           {line}")
    print(f"budget:    {search.time:g} s and {search.trials} trials; a trial that has begun is finished")
    each = ", ".join(f"{name} {about(seconds)}" for name, seconds in run_s.items())
    print(f"predicted: one run of the workload takes: {each}")
    if max(served.values()) > few:
        told = ", ".join(f"{name} {count:,}" for name, count in served.items())
        print(f"predicted: it lasts {plan['least_run_s']:.3g} s at least, which takes requests: {told}")
    spare = few > max(plan["requests_needed"].values(), default=0)
    short = too_short(least_s, search.time, spare and few in served.values())
    tried = "the defaults, each feature" if search.features else "the defaults"
    print(f"predicted: {tried} and the confirmation take about {about(least_s)}{short}")
    print(f"requests:  {plan['workload']}")
    for note in plan["notes"]:
        print(f"           {note}")
    if warmup := plan["warmup_requests"]:
        print(f"warm-up:   the first 10 % of a run's requests, here {warmup}, are in no percentile")
    for name, needed in plan["requests_needed"].items():
        print(f"samples:   {name} needs {needed} requests, there are {few}: enough")
    print("no configuration was measured")


def _single_features(space: Space, pace: Mapping[str, float]) -> list[Strategy]:
    """The default of the fastest strategy that features are searched for, with each of them."""
    open_to_some = [name for name in space.names if space.groups_of(name)]
    if not open_to_some:
        return []
    return space.neighbours(space.default(max(open_to_some, key=lambda name: pace[name])))


def _switches(plan: Mapping[str, Any]) -> str:
    """``prefix: none or prefix; drafts: none, ngram or draft; 12 variants of the strategies``"""
    told = [
        f"{group}: {', '.join(choices[:-1])} or {choices[-1]}" for group, choices in plan["switches"].items()
    ]
    return "; ".join([*told, f"{len(plan['variants'])} variants of the strategies"])


def _predicted_rate(session: Session, chosen: Strategy) -> float:
    """Requests per second, as if every batch took as long as the first."""
    workload = session.workload()
    batch = int(dict(chosen.knobs).get("max_batch_size", _ALONE))
    served = min(batch, len(workload.requests))
    began = time.monotonic()
    session.measure_first(chosen, served)
    return served / (time.monotonic() - began)
