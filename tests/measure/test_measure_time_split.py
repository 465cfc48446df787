"""Where time went, by hand: mixed steps, preemptions and rejected drafts."""

from __future__ import annotations

import pytest
from measure_records import request, run, step

from tunebatch.engine.records import EndReason, RequestRecord, StepLog
from tunebatch.measure.time_split import split_by_request, split_time


def parts_of(records: list[RequestRecord], log: StepLog, index: int = 0) -> dict[str, float]:
    """The parts that are not zero."""
    split = split_by_request(run(records, log))
    return {part: float(seconds[index]) for part, seconds in split.items() if seconds[index]}


def decodes(log: StepLog, durations_s: list[float], active: int, prefills: int = 0) -> None:
    for duration_s in durations_s:
        start_s = log.start_s[-1] + log.duration_s[-1] if len(log) else 0.0
        step(log, start_s, duration_s, active=active, held=active, blocks=0, prefills=prefills)


def test_the_chunk_of_another_lengthens_a_mixed_step() -> None:
    log = StepLog()
    decodes(log, [0.5], active=1, prefills=1)
    decodes(log, [0.25, 0.25, 0.125, 1.0, 0.25], active=3)
    decodes(log, [0.75, 0.5], active=4, prefills=1)
    # The median step that only decodes three takes 0.25 s: the mixed ones took 0.5 and 0.25 s more.
    served = request(0, 0.0, [0.5, 3.625], scheduled_s=0.0)
    assert parts_of([served], log) == {"prefill_s": 0.5, "decode_s": 2.375, "stalled_in_mixed_s": 0.75}
    # Whom the mixed steps gave the first token was not kept from anything by them.
    late = request(0, 0.0, [3.625], scheduled_s=2.375)
    assert parts_of([late], log) == {"queue_s": 2.375, "prefill_s": 1.25}


@pytest.mark.parametrize(
    ("num_pure", "size", "told"), [(5, 10, True), (4, 10, False), (5, 12, True), (5, 13, False), (5, 8, True)]
)
def test_only_steps_that_decode_a_like_batch_are_compared_with(num_pure: int, size: int, told: bool) -> None:
    log = StepLog()
    decodes(log, [0.25] * num_pure, active=size)
    decodes(log, [1.0], active=11, prefills=1)
    served = request(0, 0.0, [0.0, 0.25 * num_pure + 1.0], scheduled_s=0.0)
    found = parts_of([served], log).get("stalled_in_mixed_s")
    assert found == (0.75 if told else None)


def test_equal_batches_come_before_like_ones() -> None:
    log = StepLog()
    decodes(log, [0.5] * 5, active=10)
    decodes(log, [0.25] * 9, active=9)
    decodes(log, [1.0], active=11, prefills=1)
    served = request(0, 0.0, [0.0, 5.75], scheduled_s=0.0)
    assert parts_of([served], log)["stalled_in_mixed_s"] == 0.5


def test_a_mixed_step_that_was_faster_stalls_nobody() -> None:
    log = StepLog()
    decodes(log, [1.0] * 5, active=2)
    decodes(log, [0.5], active=3, prefills=1)
    served = request(0, 0.0, [0.0, 5.5], scheduled_s=0.0)
    assert parts_of([served], log) == {"decode_s": 5.5}


def test_preemptions_are_taken_out_of_the_phase_they_fell_into() -> None:
    log = StepLog()
    decodes(log, [1.0] * 3, active=1, prefills=1)
    decodes(log, [1.0] * 3, active=1)
    decodes(log, [1.0] * 4, active=1, prefills=1)
    served = request(0, 0.0, [4.0, 5.0, 10.0], scheduled_s=0.5)
    served.preempted_at_s, served.recomputed_at_s = [1.0, 6.0], [3.0, 9.0]
    # Of the four prefill steps from second 6 on, it stalls in the last only: before, it is not there.
    assert parts_of([served], log) == {
        "queue_s": 0.5,
        "prefill_s": 1.5,
        "preempted_s": 5.0,
        "decode_s": 2.0,
        "stalled_s": 1.0,
    }
    gone = request(0, 0.0, [4.0], scheduled_s=0.5, reason=EndReason.CANCELLED, end_s=8.0)
    gone.preempted_at_s = [5.0]
    assert parts_of([gone], log)["preempted_s"] == 3.0


def verifying(log: StepLog, duration_s: float, verifications: list[tuple[int, int, int, int]]) -> None:
    decodes(log, [duration_s], active=len(verifications))
    log.num_decodes[-1] = 0
    log.verifications[-1] = tuple(verifications)
    log.num_draft_tokens[-1] = sum(drafted for _, _, drafted, _ in verifications)
    log.num_rejected[-1] = sum(rejected for *_, rejected in verifications)


def test_rejected_drafts_waste_their_share_of_the_step() -> None:
    log = StepLog()
    decodes(log, [1.0], active=2, prefills=2)
    verifying(log, 1.0, [(7, 0, 3, 2), (4, 1, 3, 0)])  # 8 tokens computed
    verifying(log, 2.0, [(7, 0, 4, 4), (4, 1, 2, 1)])  # 8 tokens computed
    both = [request(i, 0.0, [1.0, 2.0, 4.0], scheduled_s=0.0) for i in (7, 4)]
    assert parts_of(both, log) == {"prefill_s": 1.0, "decode_s": 1.75, "speculation_waste_s": 1.25}
    assert parts_of(both, log, index=1) == {"prefill_s": 1.0, "decode_s": 2.75, "speculation_waste_s": 0.25}
    shares = split_time(run(both, log)).shares()
    assert shares["speculation_waste"] == 1.5 / 8 and sum(shares.values()) == pytest.approx(1.0)


def test_a_step_that_only_verifies_stalls_nobody() -> None:
    log = StepLog()
    verifying(log, 1.0, [(0, 0, 3, 0)])
    assert parts_of([request(0, 0.0, [0.0, 1.0], scheduled_s=0.0)], log) == {"decode_s": 1.0}


def test_who_never_arrived_spent_nothing() -> None:
    never = request(0, 3.0, [], reason=EndReason.UNFINISHED, end_s=0.0)
    assert parts_of([never], StepLog()) == {}
