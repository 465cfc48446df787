"""What became of drafts, in words."""

from __future__ import annotations

import json
from collections.abc import Sequence

from tunebatch.engine.records import SpeculationRecord
from tunebatch.measure.result import RunResult

SYNTHETIC = "synthetic acceptance"


def rates_text(rates: Sequence[float]) -> str:
    """``0.8,0.7``, as ``--acceptance`` takes them."""
    return ",".join(f"{rate:g}" for rate in rates)


def marked(strategy: str, synthetic: bool) -> str:
    """``mixed+ngram (synthetic acceptance)``, so that no number of it is taken for a measured one."""
    return f"{strategy} ({SYNTHETIC})" if synthetic else strategy


def name_of(result: RunResult) -> str:
    """The strategy of a run, marked if its acceptance was drawn."""
    speculation = result.speculation
    return marked(result.strategy, speculation is not None and bool(speculation.synthetic_acceptance))


def speculation_line(name: str, record: SpeculationRecord) -> str:
    """Acceptance by position and what the run learnt of it, in one line.

    ``name`` is the strategy. Shares are of the drafts that stood at a position. The table of drafts by batch
    is in JSON, ``[[smallest batch, largest batch, drafts], ...]``, as vLLM takes it in its speculative
    configuration as ``num_speculative_tokens_per_batch_size``.
    """
    drafted = sum(record.drafted_at)
    if not drafted:
        return f"{name}: nothing was drafted in {record.num_decodes:,} decodes"
    shares = ", ".join(
        f"{accepted / count:.0%}".replace("%", " %")
        for accepted, count in zip(record.accepted_at, record.drafted_at, strict=True)
    )
    accepted = sum(record.accepted_at)
    line = f"{name}: {accepted:,} of {drafted:,} drafts accepted; by position {shares}"
    if record.synthetic_acceptance:
        line += f"; {SYNTHETIC} {rates_text(record.synthetic_acceptance)}, drawn and not measured"
    if record.depth_by_batch:
        line += f"; drafts by batch (from, to, drafts), as learnt: {json.dumps(record.depth_by_batch)}"
    if record.num_computed:
        line += f"; the draft model computed {record.num_computed:,} tokens to draft from"
    if record.num_reused:
        share = record.num_reused / (record.num_computed + record.num_reused)
        line += f" and shared {record.num_reused:,} ({share:.0%})".replace("%", " %")
    return line
