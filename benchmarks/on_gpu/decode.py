"""Part 4: the time of decode steps against the bytes that they must move."""

from __future__ import annotations

from typing import Any

from claimed.claim import Band, Figure, Table, number

from on_gpu.bench import GpuBench, Loaded
from on_gpu.budget import Budget
from on_gpu.found import Bar, Found, Part
from on_gpu.planned import WARM_UPS, decode_steps_s, fill_cache, fits, middle
from on_gpu.work import decode_bytes, memory_floor_s
from tunebatch.engine.plan import OutOfDeviceMemoryError

JUDGED = range(1, 257)
BAR = Bar(
    "8B bf16: decode steps at this share of the bandwidth floor, the worst batch from 1 to 256 at a context "
    "of 2k",
    Band(low=0.8),
    "%",
)


def measure(bench: GpuBench) -> Found:
    found = Found(
        setting=f"{bench.setting.large} and {bench.setting.small}, random weights, {bench.setting.dtype}; "
        f"median of {bench.setting.repeats} steps after {WARM_UPS}, each from the tokens of the one before "
        "on the host to its own, submitted while that one ran; floor: weights, keys and values once, at the "
        "bandwidth of copies"
    )
    models = (bench.setting.large, bench.setting.small)
    rows: list[dict[str, Any]] = []
    for place, model in enumerate(models):
        own = _of_model(bench, model, bench.budget.share(len(models) - place), found.not_measured)
        found.tables.append(_table(model, own))
        rows += own
    found.not_measured = _grouped(found.not_measured)
    judged = [
        row["share"]
        for row in rows
        if row["model"] == bench.setting.large
        and row["context"] == bench.setting.at_context
        and row["batch"] in JUDGED
    ]
    wanted = sum(batch in JUDGED for batch in bench.setting.batches)
    if len(judged) == wanted:
        found.bars.append(BAR.dict(Figure((min(judged),), "%")))
    else:
        found.bars.append(BAR.dict(None, f"{wanted - len(judged)} of {wanted} batches are missing"))
    found.data = {"steps": rows}
    return found


def _of_model(bench: GpuBench, model: str, budget: Budget, missing: list[str]) -> list[dict[str, Any]]:
    loaded = bench.load(model)
    fill_cache(loaded.executor)
    rows: list[dict[str, Any]] = []
    for context in bench.setting.contexts:
        for batch in bench.setting.batches:
            why = fits(loaded.executor, batch, context, WARM_UPS + bench.setting.repeats)
            if why is None and budget.over():
                why = "out of time"
            if why is None:
                try:
                    rows.append(_measured(bench, loaded, batch, context))
                except OutOfDeviceMemoryError as error:
                    why = str(error)
            if why is not None:
                missing.append(f"{model}, context {context:,}, batch {batch}: {why}")
    return rows


def _measured(bench: GpuBench, loaded: Loaded, batch: int, context: int) -> dict[str, Any]:
    assert bench.ceilings is not None, "ceilings are measured first"
    timed = decode_steps_s(loaded.executor, batch, context, bench.setting.repeats)
    for step_s, contexts in timed:
        bench.steps.add_step(
            loaded.model,
            f"decode {batch} x {context}",
            step_s,
            contexts=contexts,
            block_size=loaded.executor.block_size,
        )
    step_s = middle([step_s for step_s, _ in timed])
    bytes_moved = decode_bytes(loaded.work, batch, timed[len(timed) // 2][1][0])
    floor_s = memory_floor_s(bytes_moved, bench.ceilings)
    return {
        "model": loaded.model,
        "batch": batch,
        "context": context,
        "step_ms": 1e3 * step_s,
        "floor_ms": 1e3 * floor_s,
        "share": floor_s / step_s,
        "tokens_per_s": batch / step_s,
    }


def _table(model: str, rows: list[dict[str, Any]]) -> Table:
    return Table(
        f"Decode steps of {model}",
        "context | batch | step | floor | of the floor's speed | tokens/s",
        [
            f"{row['context']:,} | {row['batch']} | {row['step_ms']:.3g} ms | {row['floor_ms']:.3g} ms | "
            f"{number(row['share'], '%')} | {row['tokens_per_s']:,.0f}"
            for row in rows
        ],
    )


def _grouped(lines: list[str]) -> list[str]:
    """One line for all batches of a context that have one reason."""
    groups: dict[tuple[str, str], list[str]] = {}
    for line in lines:
        begins, _, rest = line.partition(", batch ")
        batch, _, why = rest.partition(": ")
        groups.setdefault((begins, why), []).append(batch)
    return [f"{begins}, batch {', '.join(own)}: {why}" for (begins, why), own in groups.items()]


PART = Part("decode", "Does a decode step take what its memory traffic takes?", 200.0, measure, (BAR,))
