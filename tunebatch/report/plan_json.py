"""What was predicted for a model, for other programs; every number under ``predicted`` is one."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from tunebatch.measure.memory_plan import WEIGHT_BYTES, DecodeBalance, MemoryPlan, weight_bytes
from tunebatch.report.plan_text import notes, reason

SCHEMA = "tunebatch.memory_plan.v1"


def plan_json(plan: MemoryPlan) -> dict[str, Any]:
    """Names carry their units; None where a number does not exist."""
    model, device, lengths, fits = plan.architecture, plan.device, plan.lengths, plan.fits
    return {
        "model": plan.name,
        "source": plan.source,
        "architecture": {
            "model_type": model.kind,
            "layers": model.layers,
            "hidden_size": model.hidden,
            "heads": model.heads,
            "kv_heads": model.kv_heads,
            "head_dim": model.head_dim,
            "latent_width": None if model.latent is None else model.latent.width,
            "max_context": model.max_context,
            "windowed_layers": sum(window is not None for window in model.windows),
            "num_experts": model.num_experts,
            "quantized": model.quantized,
        },
        "device": {
            "name": device.name,
            "memory_bytes": device.memory_bytes,
            "utilization": device.utilization,
        },
        "setting": asdict(plan.setting),
        "predicted": {
            "parameters": None if plan.parameters is None else plan.parameters.total,
            "active_parameters": None if plan.parameters is None else plan.parameters.active,
            "weight_bytes": plan.weight_bytes,
            "weight_bytes_given": plan.weights_given,
            "weight_bytes_by_dtype": _weight_bytes_by_dtype(plan),
            "activation_bytes": plan.activation_bytes,
            "kv_bytes_per_token": plan.layout.bytes_per_token,
            "left_bytes": plan.left_bytes,
            "kv_room_bytes": plan.kv_room_bytes,
            "num_blocks": plan.num_blocks,
            "lengths": {
                "name": lengths.name,
                "mean_tokens": lengths.mean,
                "p90_tokens": lengths.percentile(90),
                "p95_tokens": lengths.percentile(95),
            },
            "batch": asdict(fits.batch),
            "batch_keeping_all": None if fits.keeping_all is None else asdict(fits.keeping_all),
            "batch_shared_prefix": None if fits.shared is None else asdict(fits.shared),
            "heads": [asdict(form) for form in plan.forms],
            "decode": None if plan.decode is None else _decode(plan.decode),
            "max_batch_size": fits.max_batch_size,
            "max_batch_size_shared_prefix": fits.max_batch_size_shared,
            "bound": fits.bound,
        },
        "reason": reason(plan),
        "notes": notes(plan),
    }


def _weight_bytes_by_dtype(plan: MemoryPlan) -> dict[str, int] | None:
    if plan.parameters is None:
        return None
    formats = [dtype for dtype in WEIGHT_BYTES if dtype != "mxfp4" or plan.architecture.num_experts]
    return {dtype: weight_bytes(plan.parameters, dtype) for dtype in formats}


def _decode(decode: DecodeBalance) -> dict[str, Any]:
    return {
        "flops_per_s": decode.peaks.flops_per_s,
        "bytes_per_s": decode.peaks.bytes_per_s,
        "peaks_source": decode.peaks.source,
        "compute_bound_batch_weights_only": decode.weights_only,
        "context_tokens": decode.context,
        "compute_bound_batch": decode.with_kv,
        "never_compute_bound_from_context_tokens": decode.never_from_context,
    }
