"""Part 5: the time of prompts against the arithmetic that they need."""

from __future__ import annotations

from typing import Any

from claimed.claim import Band, Figure, Table, number

from on_gpu.bench import GpuBench, Loaded
from on_gpu.budget import Budget
from on_gpu.found import Bar, Found, Part
from on_gpu.planned import fits, middle, prefill_steps_s
from on_gpu.work import compute_floor_s, prefill_flops
from tunebatch.engine.plan import OutOfDeviceMemoryError

STEPS = 3
BAR = Bar("8B bf16: a prompt of 8k tokens at this share of the matrix product ceiling", Band(low=0.6), "%")


def measure(bench: GpuBench) -> Found:
    found = Found(
        setting=f"{bench.setting.large} and {bench.setting.small}, random weights, {bench.setting.dtype}; "
        f"median of {STEPS} steps after one, from the plan to the sampled token on the host"
    )
    models = (bench.setting.small, bench.setting.large)  # the first is still loaded
    rows: list[dict[str, Any]] = []
    for place, model in enumerate(models):
        own = _of_model(bench, model, bench.budget.share(len(models) - place), found.not_measured)
        found.tables.append(_table(model, own))
        rows += own
    share = next(
        (
            row["share"]
            for row in rows
            if row["model"] == bench.setting.large and row["prompts"] == [bench.setting.at_prompt]
        ),
        None,
    )
    why = "; ".join(line for line in found.not_measured if line.startswith(bench.setting.large))
    found.bars.append(BAR.dict(None if share is None else Figure((share,), "%"), why))
    found.data = {"steps": rows, "compiled": _compiled(bench, found)}
    return found


def _compiled(bench: GpuBench, found: Found) -> dict[str, Any] | None:
    """What torch.compile makes of a prompt, as the engine finds it when it loads the small model."""
    model, why = bench.setting.small, "out of time"
    if bench.budget.left_s() >= bench.setting.compile_s:
        facts = bench.load(model, graphs=False, compiler=bench.setting.compiler).executor.model_info
        told = facts["torch_compile"]
        if "ms" in told:
            found.tables.append(_compiled_table(model, facts["forward"], told))
            return {"model": model, "forward": facts["forward"], **told}
        why = told["without"]
    found.not_measured.append(f"{model} through torch.compile: {why}")
    return None


def _of_model(bench: GpuBench, model: str, budget: Budget, missing: list[str]) -> list[dict[str, Any]]:
    loaded = bench.load(model)
    rows: list[dict[str, Any]] = []
    for prompts in _steps(bench.setting.prompts):
        why = fits(loaded.executor, len(prompts), prompts[0], 0)
        if why is None and budget.over():
            why = "out of time"
        if why is None:
            try:
                rows.append(_measured(bench, loaded, prompts))
            except OutOfDeviceMemoryError as error:
                why = str(error)
        if why is not None:
            missing.append(f"{model}, {_told(prompts)}: {why}")
    return rows


def _steps(lengths: tuple[int, ...]) -> list[list[int]]:
    """One prompt of each length, and eight of the shortest together."""
    return [*([length] for length in lengths), [min(lengths)] * 8]


def _told(prompts: list[int]) -> str:
    return f"{len(prompts)} x {prompts[0]:,} tokens"


def _measured(bench: GpuBench, loaded: Loaded, prompts: list[int]) -> dict[str, Any]:
    assert bench.ceilings is not None, "ceilings are measured first"
    timed = prefill_steps_s(loaded.executor, prompts, STEPS)
    for step_s in timed:
        bench.steps.add_step(
            loaded.model,
            f"prefill {_told(prompts)}",
            step_s,
            slices=[(0, count) for count in prompts],
            block_size=loaded.executor.block_size,
        )
    flops = prefill_flops(loaded.work, prompts)
    step_s = middle(timed)
    return {
        "model": loaded.model,
        "prompts": prompts,
        "step_ms": 1e3 * step_s,
        "flops": flops,
        "share": compute_floor_s(flops, bench.ceilings) / step_s,
        "tokens_per_s": sum(prompts) / step_s,
    }


def _table(model: str, rows: list[dict[str, Any]]) -> Table:
    return Table(
        f"Prompts of {model}",
        "prompts | step | TFLOP/s | of the ceiling | tokens/s",
        [
            f"{_told(row['prompts'])} | {row['step_ms']:.4g} ms | "
            f"{row['flops'] / row['step_ms'] / 1e9:.4g} | {number(row['share'], '%')} | "
            f"{row['tokens_per_s']:,.0f}"
            for row in rows
        ],
    )


def _compiled_table(model: str, forward: str, told: dict[str, Any]) -> Table:
    compiled_ms, eager_ms = told["ms"].values()
    return Table(
        f"Prompts of {model} through torch.compile",
        "step | compiled | eager | eager / compiled | what serves | to compile and compare",
        [
            f"{told['tokens']:,} tokens | {compiled_ms:.4g} ms | {eager_ms:.4g} ms | "
            f"{number(eager_ms / compiled_ms, 'x')} | {forward} | {told['seconds']:.1f} s"
        ],
    )


PART = Part("prefill", "Do prompts take what their arithmetic takes?", 180.0, measure, (BAR,))
