"""Records to measure: by hand, and at random."""

from __future__ import annotations

from hypothesis import strategies as st

from tunebatch.engine.records import EndReason, RequestRecord, RunRecord, StepLog


def request(
    id: int,
    arrival_s: float,
    times: list[float],
    *,
    scheduled_s: float | None = None,
    reason: EndReason = EndReason.LENGTH,
    prompt: int = 10,
    end_s: float | None = None,
) -> RequestRecord:
    return RequestRecord(
        id=id,
        arrival_s=arrival_s,
        num_prompt_tokens=prompt,
        max_tokens=max(1, len(times)),
        first_scheduled_s=scheduled_s,
        token_times_s=times,
        output=[7] * len(times),
        end_s=end_s if end_s is not None else (times[-1] if times else arrival_s),
        end_reason=reason,
    )


def run(requests: list[RequestRecord], steps: StepLog | None = None, num_blocks: int = 0) -> RunRecord:
    return RunRecord(requests=requests, steps=steps or StepLog(), num_blocks=num_blocks, block_size=16)


def step(
    log: StepLog, start_s: float, duration_s: float, active: int, held: int, blocks: int, prefills: int = 0
) -> None:
    log.start_s.append(start_s)
    log.duration_s.append(duration_s)
    log.num_prefills.append(prefills)
    log.num_prefill_tokens.append(10 * prefills)
    log.num_decodes.append(active - prefills)
    log.context_sum.append(0)
    log.slots_active.append(active)
    log.slots_held.append(held)
    log.blocks_used.append(blocks)
    log.num_waiting.append(0)
    log.num_preempted.append(0)
    log.num_draft_tokens.append(0)
    log.num_rejected.append(0)
    log.num_wasted.append(0)
    log.slices.append(())
    log.verifications.append(())


@st.composite
def requests(draw: st.DrawFn, min_size: int = 0, max_size: int = 40) -> list[RequestRecord]:
    gap = st.floats(0.0, 2.0, allow_nan=False)
    records, arrival = [], 0.0
    for id in range(draw(st.integers(min_size, max_size))):
        arrival += draw(gap)
        reason = draw(st.sampled_from([EndReason.LENGTH, EndReason.STOP, *EndReason]))
        now, times = arrival, []
        least = 1 if reason in (EndReason.LENGTH, EndReason.STOP) else 0
        for wait in draw(st.lists(gap, min_size=least, max_size=4)):
            now += wait
            times.append(now)
        records.append(request(id, arrival, times, scheduled_s=arrival if times else None, reason=reason))
    return records
