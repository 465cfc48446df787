"""A sweep's answer in plain JSON types."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tunebatch.cli.sweep_features import features_json
from tunebatch.cli.sweep_margin import margin_rate
from tunebatch.cli.sweep_report import caveats, conclusions, headline, outcome_rows, winner_row
from tunebatch.measure.result import to_json_dict
from tunebatch.report.reasons import reasons
from tunebatch.report.rows import number
from tunebatch.tune.confirm import mean_capacity

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tunebatch.profile import Profile
    from tunebatch.tune.facts import SweepOutcome, TrialFacts

SCHEMA = "tunebatch.sweep.v1"


def outcome_json(
    outcome: SweepOutcome,
    asked: Profile,
    left_out: Mapping[str, str] | None = None,
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """Everything, in plain JSON types.

    Args:
        left_out: Features that were not searched, and why.
        notes: What makes the numbers mean other than they seem, such as lengths that were scaled.
    """

    def trial(facts: TrialFacts | None) -> dict[str, Any] | None:
        return None if facts is None else facts.to_json()

    miss, rows = outcome.binding, outcome_rows(outcome, asked)
    row = winner_row(outcome, rows)
    return {
        "schema": SCHEMA,
        "headline": headline(outcome, asked),
        "objective": asked.search.objective,
        "knob_ranges": {name: list(ends) for name, ends in asked.search.knobs.items()},
        "sampler": asked.search.sampler,
        "slo": asked.slo.texts(),
        "notes": list(notes),
        "synthetic_acceptance": list(asked.model.acceptance) or None,
        "winner": trial(outcome.winner),
        "best_default": trial(outcome.best_default),
        "best_random": trial(outcome.best_random),
        "gain": outcome.gain,
        "gain_interval": list(outcome.gain_interval) if outcome.gain_interval else None,
        "random_gain": outcome.random_gain,
        "features": features_json(outcome),
        "features_left_out": dict(left_out or {}),
        "margin_rate_per_s": margin_rate(outcome, asked),
        "binding": None if miss is None else miss.limit,
        "why": conclusions(outcome, asked),
        "reasons": reasons(row, rows) if row is not None else [],
        "rejected": _rejected(outcome),
        "caveats": caveats(outcome, asked),
        "interrupted": outcome.interrupted,
        "elapsed_s": outcome.elapsed_s,
        "foreign_cpu_share": outcome.foreign_cpu_share,
        "best": [
            {
                "facts": trial(row.facts),
                "confirmed": bool(row.facts.confirmed),
                "result": None if row.result is None else to_json_dict(row.result),
            }
            for row in outcome.best
        ],
        "trials": [facts.to_json() for facts in outcome.trials],
    }


def _rejected(outcome: SweepOutcome) -> list[dict[str, Any]]:
    """Whom the confirmation looked at again without making it the winner, the best first, and why not."""
    winner = outcome.winner
    if winner is None:
        return []
    looked_at = [one for one in outcome.trials if one.confirmed and one.origin != "random"]
    beaten = [one for one in looked_at if one.config != winner.config]
    return [
        {
            "number": one.number,
            "strategy": one.strategy,
            "knobs": one.chosen.shown_knobs,
            "searched": one.capacity,
            "confirmed": list(one.confirmed),
            "why": _why_not(mean_capacity(one), mean_capacity(winner)),
        }
        for one in sorted(beaten, key=mean_capacity, reverse=True)
    ]


def _why_not(capacity: float, best: float) -> str:
    if capacity <= 0.0:
        return "misses the SLO on a fresh seed"
    return f"{number(capacity / best)}x the winner"
