"""Clients that hang up were not served, and are no lack of evidence."""

from __future__ import annotations

import pytest

from tunebatch.engine.records import EndReason, RequestRecord, RunRecord, StepLog
from tunebatch.measure.metrics import summarize
from tunebatch.measure.result import RunResult
from tunebatch.measure.slo import check, parse_slo
from tunebatch.tune.capacity import NotEnoughEvidenceError, is_sustained
from tunebatch.tune.trial import miss_of


def run_of(num_served: int, num_gone: int, num_tokens: int, *slo: str) -> RunResult:
    """Some get two tokens at once; the others hang up after 0.2 s, with a few tokens or none."""
    records = [
        RequestRecord(
            id=i,
            arrival_s=float(i),
            num_prompt_tokens=1,
            max_tokens=2,
            token_times_s=[i + 0.01 * (k + 1) for k in range(2 if i < num_served else num_tokens)],
            end_s=i + 0.02 if i < num_served else i + 0.2,
            end_reason=EndReason.LENGTH if i < num_served else EndReason.CANCELLED,
        )
        for i in range(num_served + num_gone)
    ]
    limits = parse_slo(slo)
    metrics = summarize(RunRecord(records, StepLog()), limits)
    return RunResult(
        strategy="sequential",
        knobs={},
        workload={"rate_per_s": 1.0, "num_requests": len(records)},
        model={},
        environment={},
        slo=list(slo),
        metrics=metrics,
        verdict=check(metrics, limits),
    )


def test_too_many_that_hung_up_before_their_first_token_are_a_miss() -> None:
    slo = ("p90_ttft<=500ms", "p90_tpot<=1s")
    assert is_sustained(run_of(73, 4, 0, *slo))
    missed = run_of(64, 13, 0, *slo)
    assert not is_sustained(missed)
    miss = miss_of(missed)
    assert (miss.limit, miss.observed_s, miss.hung_up) == ("p90_ttft", None, 13)


@pytest.mark.parametrize(
    ("num_tokens", "slo"), [(0, "p90_tpot<=1s"), (1, "p90_tpot<=1s"), (1, "p90_e2e<=1s")]
)
def test_evidence_that_hung_up_is_a_miss(num_tokens: int, slo: str) -> None:
    run = run_of(50, 20, num_tokens, "p50_ttft<=500ms", slo)
    assert not is_sustained(run)
    assert (miss_of(run).limit, miss_of(run).rate_per_s) == ("clients hung up", 1.0)


@pytest.mark.parametrize(("num_tokens", "count"), [(0, 50), (2, 60)])
def test_a_workload_that_is_too_short_without_them_too_is_an_error(num_tokens: int, count: int) -> None:
    with pytest.raises(NotEnoughEvidenceError, match=f"{count} of 64"):
        is_sustained(run_of(50, 10, num_tokens, "p50_ttft<=500ms", "p90_tpot<=1s"))


def test_without_a_limit_on_the_ttft_they_are_lost() -> None:
    run = run_of(70, 1, 0, "p90_tpot<=1s")
    assert not is_sustained(run)
    assert miss_of(run).limit == "clients hung up"
