"""What was predicted for several models, side by side: a column each."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from rich.table import Table

from tunebatch.measure.memory_plan import HeadForm, MemoryPlan
from tunebatch.report.plan_text import bytes_text, count_text, factor_text

Cell = Callable[[MemoryPlan], str]
Group = list[tuple[str, Cell]]

_NOTHING = "-"


def plan_table(plans: Sequence[MemoryPlan]) -> Table:
    """A column for each model; a row that says nothing of any of them is left out."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("predicted", no_wrap=True)
    for plan in plans:
        table.add_column(plan.name, justify="right", no_wrap=True)
    groups = (_model(), _room(plans[0]), _sequences(plans[0]), _heads(plans), _decode())
    for group in groups:
        rows = [(label, [cell(plan) for plan in plans]) for label, cell in group]
        told = [(label, cells) for label, cells in rows if any(cell != _NOTHING for cell in cells)]
        for label, cells in told:
            table.add_row(label, *cells)
        if told:
            table.add_row()
    table.add_row("max_batch_size", *map(_recommended, plans), style="bold green")
    if plans[0].setting.prefix_tokens:
        table.add_row(
            "max_batch_size, shared tokens stored once", *map(_recommended_shared, plans), style="bold green"
        )
    return table


def _model() -> Group:
    return [
        ("parameters", lambda p: _NOTHING if p.parameters is None else count_text(p.parameters.total)),
        ("  of them a token goes through", _active),
        ("query heads / KV heads", _head_counts),
        ("dtype of the weights", lambda p: p.setting.dtype),
        ("dtype of the KV cache", lambda p: p.setting.kv_dtype),
        ("KV of a token", lambda p: bytes_text(p.layout.bytes_per_token)),
    ]


def _active(plan: MemoryPlan) -> str:
    if plan.parameters is None or not plan.architecture.num_experts:
        return _NOTHING
    return count_text(plan.parameters.active)


def _head_counts(plan: MemoryPlan) -> str:
    model = plan.architecture
    return f"{model.heads} / {model.kv_heads if model.latent is None else 'a latent'}"


def _room(plan: MemoryPlan) -> Group:
    share = f"{bytes_text(plan.device.memory_bytes)} x {plan.device.utilization:g}"
    step = f"{plan.setting.batched_tokens:,} tokens"
    return [
        (f"device memory, {share}", lambda p: bytes_text(p.device.usable_bytes)),
        ("- weights", lambda p: bytes_text(p.weight_bytes) + " (as given)" * p.weights_given),
        (f"- activations of a step of {step}, roughly", lambda p: bytes_text(p.activation_bytes)),
        (
            "- what the executor leaves to others on a CPU",
            lambda p: bytes_text(p.left_bytes) if p.left_bytes else _NOTHING,
        ),
        ("= KV room", lambda p: bytes_text(p.kv_room_bytes)),
        (f"  in blocks of {plan.setting.block_size} tokens", lambda p: f"{p.num_blocks:,}"),
    ]


def _sequences(plan: MemoryPlan) -> Group:
    prefix = plan.setting.prefix_tokens
    before = f" behind {prefix:,} shared" if prefix else ""
    return [
        (f"tokens of a sequence{before}: mean", lambda p: f"{p.lengths.mean:,.0f}"),
        ("  p90", lambda p: f"{p.lengths.percentile(90):,}"),
        ("  p95", lambda p: f"{p.lengths.percentile(95):,}"),
        ("KV of a p95 sequence", _kv_of_p95),
        ("batch of mean sequences", lambda p: f"{p.fits.batch.mean:,}"),
        ("batch of p95 sequences (safe)", lambda p: f"{p.fits.batch.p95:,}"),
        (
            "  with all of their context kept",
            lambda p: _NOTHING if p.fits.keeping_all is None else f"{p.fits.keeping_all.p95:,}",
        ),
        (f"  with the {prefix:,} shared tokens stored once", _shared),
    ]


def _kv_of_p95(plan: MemoryPlan) -> str:
    tokens = plan.setting.prefix_tokens + plan.lengths.percentile(95)
    return bytes_text(float(plan.layout.bytes_of(np.array([tokens]))[0]))


def _shared(plan: MemoryPlan) -> str:
    shared = plan.fits.shared
    if shared is None:
        return _NOTHING
    gain = f" ({shared.p95 / plan.fits.batch.p95:.3g}x)" if plan.fits.batch.p95 else ""
    return f"{shared.p95:,}{gain}"


def _heads(plans: Sequence[MemoryPlan]) -> Group:
    present = {form.form for plan in plans for form in plan.forms}
    group: Group = []
    for name in ("MHA", "GQA", "MQA"):
        if name in present:
            group.append((f"if it were {name}: KV of a token", _of_form(name, _form_kv)))
            group.append(("  batch of p95 sequences", _of_form(name, lambda p, form: f"{form.batch.p95:,}")))
    return group


def _of_form(name: str, cell: Callable[[MemoryPlan, HeadForm], str]) -> Cell:
    def found(plan: MemoryPlan) -> str:
        form = next((one for one in plan.forms if one.form == name), None)
        return _NOTHING if form is None else cell(plan, form)

    return found


def _form_kv(plan: MemoryPlan, form: HeadForm) -> str:
    return f"{bytes_text(form.kv_bytes_per_token)} ({factor_text(form.kv_heads, plan.architecture.kv_heads)})"


def _decode() -> Group:
    return [
        (
            "compute binds decoding from batch: by weights alone",
            lambda p: _NOTHING if p.decode is None else f"{p.decode.weights_only:,.0f}",
        ),
        ("  with the KV of these sequences", _with_kv),
        ("  never from a context of", _never_from),
    ]


def _with_kv(plan: MemoryPlan) -> str:
    if plan.decode is None:
        return _NOTHING
    return "never" if plan.decode.with_kv is None else f"{plan.decode.with_kv:,.0f}"


def _never_from(plan: MemoryPlan) -> str:
    if plan.decode is None or plan.decode.never_from_context is None:
        return _NOTHING
    return f"{plan.decode.never_from_context:,} tokens"


def _recommended(plan: MemoryPlan) -> str:
    return f"{plan.fits.max_batch_size:,}" if plan.fits.max_batch_size else "does not fit"


def _recommended_shared(plan: MemoryPlan) -> str:
    return f"{plan.fits.max_batch_size_shared:,}" if plan.fits.max_batch_size_shared else "does not fit"
