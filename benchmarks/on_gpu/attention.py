"""Part 3: the attention kernel alone, against torch's SDPA on contiguous memory and against the ceilings."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from claimed.claim import Table, number

from on_gpu.attention_step import AttentionStep, Heads, attention_step
from on_gpu.bench import GpuBench
from on_gpu.device_time import Turns
from on_gpu.found import Found, Part
from on_gpu.work import attention_bytes, attention_flops, compute_floor_s, memory_floor_s
from tunebatch.execute.torch.attention import choose_backend
from tunebatch.execute.torch.attention.base import Variant
from tunebatch.execute.torch.load import DTYPES
from tunebatch.models.named_shape import named_shape

BLOCK_SIZE, ROUNDS = 16, 15
# Of the memory that is free; the contiguous copy for SDPA, the pages, and what making them takes.
MOST_SHARE, COPIES = 0.8, 5
DECODES = (1, 8, 64, 256)


@torch.inference_mode()
def measure(bench: GpuBench) -> Found:
    bench.release()
    setting = bench.setting
    found = Found(
        setting=f"layers of {setting.large} and {setting.small}, {setting.dtype}, blocks of {BLOCK_SIZE} "
        f"tokens that lie scattered; median of up to {ROUNDS} rounds in which both sides take turns, caches "
        "cold, without launching; SDPA is given contiguous keys and values, and for decodes the query heads "
        "of a KV head as rows"
    )
    turns = Turns(setting.device)
    rows: list[dict[str, Any]] = []
    steps = _steps(setting.batches, setting.contexts, setting.prompts)
    for place, (model, batch, context) in enumerate(
        (model, *step) for step in steps for model in (setting.large, setting.small)
    ):
        told = f"{model}, {_told(batch, context)}"
        left = 2 * len(steps) - place
        if bench.budget.over():
            found.not_measured.append(f"attention of {told}: out of time")
        elif why := _too_large(bench, model, batch, context):
            found.not_measured.append(f"attention of {told}: {why}")
        else:
            rows.append(_measured(bench, turns, model, batch, context, bench.budget.share(left).left_s()))
    for model in (setting.large, setting.small):
        found.tables.append(_table(model, [row for row in rows if row["model"] == model]))
    found.not_measured += [
        f"attention by {name} without launching: it could not be captured" for name in turns.launched
    ]
    found.data = {"steps": rows}
    return found


def _steps(
    batches: tuple[int, ...], contexts: tuple[int, ...], prompts: tuple[int, ...]
) -> list[tuple[int, int]]:
    """Decodes as ``(batch, context)``, and prompts as ``(0, tokens)``."""
    few = [batch for batch in DECODES if batch in batches]
    return [*((batch, context) for context in contexts for batch in few), *((0, n) for n in prompts)]


def _told(batch: int, context: int) -> str:
    return f"{batch} x 1 token at {context:,}" if batch else f"a prompt of {context:,}"


def _heads(model: str) -> Heads:
    shape = named_shape(model)
    assert shape is not None
    sizes = shape.sizes
    return Heads(sizes.kv_heads, sizes.heads // sizes.kv_heads, sizes.head_dim)


def _too_large(bench: GpuBench, model: str, batch: int, context: int) -> str | None:
    if not bench.on_cuda:
        return None
    heads = _heads(model)
    needed = COPIES * attention_bytes(max(1, batch), context, heads.kv_heads, heads.dim, 2)
    free, _ = torch.cuda.mem_get_info()
    return None if needed < MOST_SHARE * free else f"{needed / 2**30:.0f} GiB are needed for both sides"


def _measured(
    bench: GpuBench, turns: Turns, model: str, batch: int, context: int, budget_s: float
) -> dict[str, Any]:
    assert bench.ceilings is not None, "ceilings are measured first"
    setting, heads, dtype = bench.setting, _heads(model), DTYPES[bench.setting.dtype]
    backend = choose_backend(setting.backend, setting.device, dtype, heads.dim, BLOCK_SIZE)
    starts, counts = ([context - 1] * batch, [1] * batch) if batch else ([0], [context])
    made = attention_step(
        backend,
        heads,
        starts,
        counts,
        Variant(heads.dim**-0.5),
        dtype=dtype,
        device=setting.device,
        block_size=BLOCK_SIZE,
        seed=0,
        keep_contexts=False,
    )
    sides = {"ours": lambda: made.attend(backend), "SDPA": _sdpa(made, heads, batch, context)}
    times = turns.medians_s(sides, ROUNDS, budget_s)
    if batch:
        moved = attention_bytes(batch, context, heads.kv_heads, heads.dim, dtype.itemsize)
        floor_s = memory_floor_s(moved, bench.ceilings)
    else:
        floor_s = compute_floor_s(attention_flops(context, heads.query_heads, heads.dim), bench.ceilings)
    return {
        "model": model,
        "backend": backend.name,
        "batch": batch,
        "context": context,
        "ours_us": 1e6 * times["ours"],
        "sdpa_us": 1e6 * times["SDPA"],
        "floor_us": 1e6 * floor_s,
        "over_sdpa": times["SDPA"] / times["ours"],
        "share": floor_s / times["ours"],
    }


def _sdpa(made: AttentionStep, heads: Heads, batch: int, context: int) -> Any:
    """A call without arguments, for as much work."""
    if not batch:
        query, key, value = (
            part.transpose(0, 1)[None].contiguous() for part in (made.query, made.key, made.value)
        )
        return lambda: F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
    query = made.query.view(batch, heads.kv_heads, heads.group, heads.dim)
    key, value = (made.query.new_empty(batch, heads.kv_heads, context, heads.dim).normal_() for _ in range(2))
    return lambda: F.scaled_dot_product_attention(query, key, value)


def _table(model: str, rows: list[dict[str, Any]]) -> Table:
    return Table(
        f"Attention of one layer of {model}" + (f" ({rows[0]['backend']})" if rows else ""),
        "step | ours | SDPA | ours over SDPA | of the floor's speed",
        [
            f"{_told(row['batch'], row['context'])} | {row['ours_us']:,.0f} us | {row['sdpa_us']:,.0f} us | "
            f"{number(row['over_sdpa'], 'x')} | {number(row['share'], '%')}"
            for row in rows
        ],
    )


PART = Part("attention", "How fast is the attention kernel alone?", 60.0, measure)
