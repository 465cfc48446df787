"""What was predicted for a model, in sentences, and how its numbers are written."""

from __future__ import annotations

from tunebatch.measure.kv_memory import Fits
from tunebatch.measure.kv_room import CONTEXTS, CPU_KV_BYTES, CPU_SHARE
from tunebatch.measure.memory_plan import MemoryPlan
from tunebatch.report.measured_plan import MeasuredPlan
from tunebatch.report.rows import number


def legend(measured: bool) -> str:
    """Where the numbers of a screen are from."""
    what = "what is not called measured" if measured else "all of it"
    return (
        f"{what} is predicted from the configs, for sequences at their full length; what the driver, the "
        "framework and its graphs keep for themselves must fit into the share that is left out"
    )


def headline(plan: MemoryPlan, measured: MeasuredPlan | None = None) -> str:
    """``llama-3.1-8b on NVIDIA H100 SXM (79.6 GiB): max_batch_size 160 for chat, ... (predicted)``

    Args:
        measured: Of the loaded model: the recommendation is for the KV room that it left.
    """
    where = f"{plan.name} on {plan.device.name} ({bytes_text(plan.device.memory_bytes)})"
    held = plan.fits if measured is None else measured.fits
    if held.max_batch_size:
        what = f"max_batch_size {held.max_batch_size} for {plan.lengths.name}{_sharing(held)}"
        what += f", bound by {held.bound}"
    elif plan.kv_room_bytes <= 0 and measured is None:
        what = "does not fit"
    else:
        what = f"has no room for one sequence of {plan.lengths.name}{_sharing(held)}"
    return f"{where}: {what} ({'from the measured KV room' if measured else 'predicted'})"


def _sharing(held: Fits) -> str:
    if not held.max_batch_size_shared:
        return ""
    return f" ({held.max_batch_size_shared} with the prefix stored once)"


def reason(plan: MemoryPlan, measured: MeasuredPlan | None = None) -> str:
    """Why the recommended batch is what it is, in one line."""
    if plan.kv_room_bytes <= 0 and measured is None:
        needed, usable = plan.weight_bytes + plan.activation_bytes, plan.device.usable_bytes
        return (
            f"{plan.name}: weights and activations take {bytes_text(needed)}, "
            f"and {bytes_text(usable)} may be used"
        )
    held, what = (plan.fits, "KV room") if measured is None else (measured.fits, "measured KV room")
    longest = f"{plan.setting.prefix_tokens + plan.lengths.percentile(95):,} tokens"
    kept = ", all of their context kept" if held.keeping_all is not None else ""
    room = f"{plan.name}: the {what} holds {held.safe:,} sequences of {longest} (p95){kept}"
    if not held.max_batch_size:
        return room
    return f"{room}; {_compute(plan) if measured is None else _measured_compute(measured)}"


def _compute(plan: MemoryPlan) -> str:
    if plan.parameters is None:
        return "where compute takes over is not known, as its parameters are not counted"
    if plan.decode is None:
        return "where compute takes over is not known without --gpu, or --tflops and --bandwidth"
    batch, context = plan.decode.with_kv, f"{plan.decode.context:,.0f} tokens of context"
    if batch is None:
        return (
            f"at {context} the reading of keys and values binds a decode step of any size, and compute none"
        )
    if plan.fits.bound == "compute":
        return (
            f"from about {batch:,.0f} on, at {context}, compute binds a decode step, and more add only delay"
        )
    return f"compute would bind a decode step from about {batch:,.0f} on, at {context}"


def _measured_compute(measured: MeasuredPlan) -> str:
    batch, times = measured.compute_bound_batch, measured.times
    context = f"{times.context:,} tokens of context"
    if batch is None:
        return f"measured, compute binds no decode step up to batch {max(times.step_s):,}, at {context}"
    return f"measured, compute binds a decode step from batch {batch:,} on, at {context}"


def notes(plan: MemoryPlan) -> list[str]:
    """What else there is to know about the numbers of one model; the lengths are those of all."""
    found = [*_window_notes(plan), *_latent_notes(plan), *_format_notes(plan)]
    if plan.device.cpu_free_bytes is not None:
        found.append(
            f"on this CPU the executor takes {bytes_text(CPU_KV_BYTES)} for keys and values, or {CONTEXTS} "
            f"of the longest sequences, and at most {CPU_SHARE:.0%} of the memory that is free"
        )
    found += plan.notes
    return [*plan.lengths.notes, *(f"{plan.name}: {note}" for note in found)]


def _format_notes(plan: MemoryPlan) -> list[str]:
    dtype, published = plan.setting.dtype, plan.architecture.quantized
    found = []
    if dtype == "mxfp4":
        as_published = ", as published" if published == dtype else ""
        found.append(
            f"the experts count in MXFP4{as_published}: 4.25 bits a weight with their scales; "
            "all other weights count in 16 bits"
        )
    if dtype in ("fp8", "int8", "int4"):
        found.append(f"{dtype}: embeddings, norms and head count in 16 bits, scales do not count")
    if published not in (None, dtype):
        parts = "experts" if published == "mxfp4" else "weights"
        found.append(f"the {parts} are published in {published}, here they count in {dtype}")
    return found


def _window_notes(plan: MemoryPlan) -> list[str]:
    model = plan.architecture
    windows = [window for window in model.windows if window is not None]
    if not windows:
        return []
    told = f"{len(windows)} of {model.layers} layers see {max(windows):,} tokens back"
    if plan.fits.keeping_all is None:
        return [f"{told}, which bounds nothing at these lengths"]
    return [
        f"{told}, which bounds their KV; max_batch_size is for a cache that keeps all, as this engine's does"
    ]


def _latent_notes(plan: MemoryPlan) -> list[str]:
    model, latent = plan.architecture, plan.architecture.latent
    if latent is None:
        return []
    expanded = 2 * model.kv_heads * model.head_dim
    return [
        f"multi-head latent attention: KV counts in the latent layout, {latent.rank} + {latent.rope} numbers "
        f"of a token in each layer, the same for all heads; keys and values of the {model.heads} heads, as "
        f"engines without it keep them, would be {expanded / latent.width:.3g} times as many"
    ]


def bytes_text(count: float) -> str:
    """``15 GiB``, ``128 KiB``"""
    for unit, size in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if abs(count) >= size:
            return f"{number(count / size)} {unit}"
    return f"{count:,.0f} B"


def count_text(count: int) -> str:
    """``8.03 billion``"""
    for unit, size in (("billion", 10**9), ("million", 10**6)):
        if count >= size:
            return f"{number(count / size)} {unit}"
    return f"{count:,}"


def factor_text(kv_heads: int, own: int) -> str:
    """KV bytes as a multiple of the model's own: ``4x``, ``1/8``."""
    if kv_heads == own:
        return "own"
    return f"{kv_heads / own:g}x" if kv_heads > own else f"1/{own / kv_heads:g}"
