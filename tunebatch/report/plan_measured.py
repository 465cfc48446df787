"""What was measured of loaded models, beside what was predicted of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.table import Table

from tunebatch.measure.memory_plan import MemoryPlan
from tunebatch.report.measured_plan import MeasuredPlan

_NOTHING = "-"


def measured_table(plans: Sequence[MemoryPlan], measured: Sequence[MeasuredPlan]) -> Table:
    """What each loaded model takes, beside what was predicted of it."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("model", no_wrap=True)
    table.add_column("")
    for name in ("predicted", "measured", "difference"):
        table.add_column(name, justify="right", no_wrap=True)
    for plan, taken in zip(plans, measured, strict=True):
        name = plan.name
        for label, predicted, found in (*_sizes(plan, taken), *_batches(plan, taken)):
            table.add_row(name, label, f"{predicted:,}", f"{found:,}", _difference(predicted, found))
            name = ""
        table.add_row(
            "",
            f"compute binds decoding from batch, at {taken.times.context:,} tokens of context",
            _predicted_balance(plan),
            _measured_balance(taken),
            _NOTHING,
        )
    return table


def measured_json(taken: MeasuredPlan) -> dict[str, Any]:
    """Names carry their units; None where a number does not exist."""
    return {
        **asdict(taken.memory),
        "kv_room_bytes": taken.kv_room_bytes,
        "batch": asdict(taken.fits.batch),
        "decode": {"context_tokens": taken.times.context, "step_s_by_batch": taken.times.step_s},
        "compute_bound_batch": taken.compute_bound_batch,
        "max_batch_size": taken.fits.max_batch_size,
        "max_batch_size_shared_prefix": taken.fits.max_batch_size_shared,
    }


def measured_notes(taken: MeasuredPlan) -> list[str]:
    """Why an executor may take fewer blocks than fit, and what the times mean."""
    times = ", ".join(f"{batch}: {1000 * seconds:,.3g}" for batch, seconds in taken.times.step_s.items())
    return [
        f"the executor takes no more blocks than its {taken.memory.max_slots} batch slots can fill",
        f"ms of a decode step by batch, measured: {times}; compute takes over where a step takes a quarter "
        "longer than reading weights, keys and values as fast as at batch 1",
    ]


def _sizes(plan: MemoryPlan, taken: MeasuredPlan) -> list[tuple[str, int, int]]:
    memory = taken.memory
    step = f"{memory.activation_tokens:,} tokens"
    counted = plan.parameters
    return [
        *([] if counted is None else [("parameters", counted.total, memory.parameters)]),
        (f"bytes of the weights in {memory.dtype}", plan.weight_bytes, memory.weight_bytes),
        (
            f"bytes of the activations of a step of {step}",
            taken.predicted_activation_bytes,
            memory.activation_bytes,
        ),
        ("KV bytes of a token", plan.layout.bytes_per_token, memory.kv_bytes_per_token),
        (f"KV blocks of {memory.block_size} tokens", taken.predicted_blocks, memory.num_blocks),
    ]


def _batches(plan: MemoryPlan, taken: MeasuredPlan) -> list[tuple[str, int, int]]:
    # From the same room that the blocks above are of, where batch slots bound them.
    predicted = plan.in_room(taken.predicted_blocks * plan.layout.bytes_per_block)
    rows = [
        ("batch of p95 sequences in them", predicted.safe, taken.fits.safe),
        ("max_batch_size", predicted.max_batch_size, taken.fits.max_batch_size),
    ]
    if predicted.max_batch_size_shared is not None and taken.fits.max_batch_size_shared is not None:
        shared = "max_batch_size, shared tokens stored once"
        rows.append((shared, predicted.max_batch_size_shared, taken.fits.max_batch_size_shared))
    return rows


def _predicted_balance(plan: MemoryPlan) -> str:
    if plan.decode is None:
        return _NOTHING
    return "never" if plan.decode.with_kv is None else f"{plan.decode.with_kv:,.0f}"


def _measured_balance(taken: MeasuredPlan) -> str:
    if taken.compute_bound_batch is None:
        return f"none to {max(taken.times.step_s):,}"
    return f"{taken.compute_bound_batch:,}"


def _difference(predicted: int, found: int) -> str:
    if predicted == found:
        return "none"
    return f"{100 * (found / predicted - 1):+.1f} %" if predicted else _NOTHING
