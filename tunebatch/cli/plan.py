"""``tunebatch plan``: memory and batch sizes from a config, before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunebatch.cli import options
from tunebatch.cli.errors import INFEASIBLE, OK, CliError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tunebatch.cli.plan_device import AskedDevice
    from tunebatch.cli.plan_lengths import AskedLengths
    from tunebatch.cli.plan_models import ModelConfig
    from tunebatch.cli.plan_sizes import ModelSizes
    from tunebatch.measure.kv_memory import SequenceLengths
    from tunebatch.measure.memory_plan import Device, MemoryPlan, Setting
    from tunebatch.models.architecture import Architecture
    from tunebatch.report.measured_plan import MeasuredPlan


def _text(*names: str, metavar: str, help: str) -> Any:
    return typer.Option(*names, metavar=metavar, help=help, show_default=False)


_MODELS = typer.Argument(
    metavar="MODEL...",
    help="'bundled', a folder, a config.json, a hub id, or a named shape such as llama-3.1-8b or qwen3-8b.",
)
_MEMORY = _text(
    "--memory", metavar="SIZE", help="Of the device, such as 80GiB [that of --gpu, or of this machine]."
)
_GPU = _text(
    "--gpu", metavar="NAME", help="Memory and peaks of a published GPU: h100, l4, a100-80g, rtx-4090 ..."
)
_UTILIZATION = typer.Option("--utilization", metavar="SHARE", help="Of the memory, what may be used.")
_WORKLOAD = _text(
    "--workload",
    "-w",
    metavar="NAME",
    help="Whose lengths: quickstart, chat, code, summarize, rag, agents, long-prompt, multi-turn, "
    "system-prompt or offline [chat].",
)
_TOKENS = _text("--tokens", metavar="N", help="Instead: prompt and output of each sequence together.")
_PROMPTS = _text(
    "--prompt-tokens", metavar="LENGTHS", help="Such as 512, uniform:16-256 or lognormal:p50=417,p90=1678."
)
_OUTPUTS = _text("--output-tokens", metavar="LENGTHS", help="The same of outputs.")
_PREFIX = typer.Option(
    "--shared-prefix", metavar="N", help="Tokens in front of every prompt, the same for all."
)
_DTYPE = _text(
    "--dtype",
    metavar="DTYPE",
    help="float32, bfloat16, float16, fp8, int8, int4, mxfp4 (experts) [as published; on a CPU float32].",
)
_KV_DTYPE = _text(
    "--kv-dtype", metavar="DTYPE", help="float32, bfloat16, float16, fp8, int8 [as the weights]."
)
_WEIGHTS = _text(
    "--weights", metavar="SIZE", help="What the weights take, such as 14GiB [counted from the config]."
)
_TFLOPS = _text("--tflops", metavar="N", help="Peak, 1e12 operations a second; with --bandwidth.")
_BANDWIDTH = _text("--bandwidth", metavar="GB/S", help="Peak of the memory, 1e9 bytes a second.")
_BATCHED = typer.Option("--batched-tokens", metavar="N", help="Most tokens of a step, for its activations.")
_BLOCK = typer.Option("--block-size", metavar="N", help="Tokens of a KV block.")
_MEASURE = typer.Option(
    "--measure", help="Load each model here, and set what it takes beside the prediction."
)

# Batch slots of a measured model: as by default, and more than where a GPU's arithmetic takes over.
_CPU_SLOTS, _GPU_SLOTS = 64, 512


@dataclass(frozen=True, slots=True)
class _Widths:
    """What sizes a model's memory beside its config; None: as the config and the device have it.

    Attributes:
        weight_bytes: Of the weights as the user has them; None: counted.
        loaded: The model is to be loaded, in a dtype that is computed in.
    """

    dtype: str | None
    kv_dtype: str | None
    block_size: int
    batched_tokens: int
    prefix_tokens: int
    weight_bytes: int | None
    loaded: bool


def plan(
    models: Annotated[list[str], _MODELS],
    memory: Annotated[str | None, _MEMORY] = None,
    gpu: Annotated[str | None, _GPU] = None,
    utilization: Annotated[float, _UTILIZATION] = 0.9,
    workload: Annotated[str | None, _WORKLOAD] = None,
    tokens: Annotated[int | None, _TOKENS] = None,
    prompt_tokens: Annotated[str | None, _PROMPTS] = None,
    output_tokens: Annotated[str | None, _OUTPUTS] = None,
    shared_prefix: Annotated[int, _PREFIX] = 0,
    dtype: Annotated[str | None, _DTYPE] = None,
    kv_dtype: Annotated[str | None, _KV_DTYPE] = None,
    weights: Annotated[str | None, _WEIGHTS] = None,
    tflops: Annotated[float | None, _TFLOPS] = None,
    bandwidth: Annotated[float | None, _BANDWIDTH] = None,
    batched_tokens: Annotated[int, _BATCHED] = 2048,
    block_size: Annotated[int, _BLOCK] = 16,
    device: options.Device = None,
    measure: Annotated[bool, _MEASURE] = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> int:
    """Predict from a config alone what a model's weights and KV cache take, and how many sequences fit."""
    from tunebatch.cli.plan_device import AskedDevice, parse_bytes
    from tunebatch.cli.plan_lengths import AskedLengths
    from tunebatch.cli.plan_models import model_config

    for flag, count, least in (
        ("--tokens", tokens, 2),
        ("--batched-tokens", batched_tokens, 1),
        ("--block-size", block_size, 1),
        ("--shared-prefix", shared_prefix, 0),
    ):
        if count is not None and not least <= count <= 2**31:
            raise CliError(f"{flag} {count}: must be at least {least} and below 2^31")
    if tokens is not None and (workload or prompt_tokens or output_tokens):
        raise CliError(
            "--tokens is the length of every sequence; leave it out, "
            "or --workload, --prompt-tokens and --output-tokens"
        )
    lengths = AskedLengths(tokens, workload, prompt_tokens, output_tokens)
    asked = AskedDevice(memory, gpu, utilization, tflops, bandwidth, device)
    weight_bytes = None if weights is None else parse_bytes(weights, "--weights")
    if weights is not None and len(models) > 1:
        raise CliError(f"--weights {weights}: is of one model; plan the {len(models)} one by one")
    widths = _Widths(dtype, kv_dtype, block_size, batched_tokens, shared_prefix, weight_bytes, measure)
    found = [model_config(model) for model in models]
    if measure:
        _check_measurable(found, asked, widths)
        found = [replace(one, name=one.loaded_name or one.name) for one in found]
    plans = _planned(found, asked, lengths, widths)
    measured = [_measured(one, made, asked) for one, made in zip(found, plans, strict=True) if measure]
    if json:
        _print_json(plans, measured)
    else:
        _print(plans, measured, quiet)
    held = [taken.fits for taken in measured] or [made.fits for made in plans]
    return OK if any(one.max_batch_size for one in held) else INFEASIBLE


def _planned(
    found: list[ModelConfig], asked: AskedDevice, lengths: AskedLengths, widths: _Widths
) -> list[MemoryPlan]:
    from tunebatch.cli.plan_device import planned_device
    from tunebatch.cli.plan_lengths import common_lengths
    from tunebatch.cli.plan_sizes import model_sizes

    device, on_cpu = planned_device(asked)
    models = [model_sizes(one) for one in found]
    contexts = [(one.name, model.architecture.max_context) for one, model in zip(found, models, strict=True)]
    common = common_lengths(lengths, contexts, widths.prefix_tokens)
    return [
        _plan(one, model, device, on_cpu, common, widths) for one, model in zip(found, models, strict=True)
    ]


def _plan(
    found: ModelConfig,
    model: ModelSizes,
    device: Device,
    on_cpu: bool,
    lengths: SequenceLengths,
    widths: _Widths,
) -> MemoryPlan:
    from tunebatch.measure.memory_plan import kv_layout, plan_memory
    from tunebatch.report.plan_text import bytes_text

    setting = _setting(widths, found.name, model.architecture, on_cpu)
    if model.parameters is None and widths.weight_bytes is None:
        per_token = kv_layout(model.architecture, setting).bytes_per_token
        raise CliError(
            f"{found.name}: KV of a token is {bytes_text(per_token)} in {setting.kv_dtype} (predicted), but "
            f"the parameters of model_type {model.architecture.kind!r} cannot be counted; "
            "say what its weights take, such as --weights 14GiB"
        )
    return plan_memory(
        found.name,
        model.architecture,
        model.parameters,
        device,
        lengths,
        setting,
        given_weight_bytes=widths.weight_bytes,
        source=found.source,
        notes=(*model.notes, *filter(None, [found.note])),
    )


def _setting(widths: _Widths, name: str, model: Architecture, on_cpu: bool) -> Setting:
    from tunebatch.measure.memory_plan import KV_BYTES, WEIGHT_BYTES, Setting
    from tunebatch.profile import nearest

    own = "float32" if on_cpu else model.dtype
    if not on_cpu and not widths.loaded and model.quantized in WEIGHT_BYTES:
        own = model.quantized
    dtype = widths.dtype or own
    kv_dtype = widths.kv_dtype or (dtype if dtype in ("float32", "bfloat16", "float16") else "bfloat16")
    for flag, named, known in (("--dtype", dtype, WEIGHT_BYTES), ("--kv-dtype", kv_dtype, KV_BYTES)):
        if named not in known:
            raise CliError(f"{flag} {named!r}: unknown dtype{nearest(named, known)}")
    if dtype == "mxfp4" and not model.num_experts:
        raise CliError(f"--dtype mxfp4: is of experts, and {name} has none; the nearest is int4")
    return Setting(dtype, kv_dtype, widths.block_size, widths.batched_tokens, widths.prefix_tokens)


def _check_measurable(found: list[ModelConfig], asked: AskedDevice, widths: _Widths) -> None:
    """Refuses what cannot be loaded here, before anything is."""
    if not asked.of_this_machine:
        raise CliError("--measure is of this machine; leave out --memory and --gpu")
    if widths.dtype not in (None, "float32", "bfloat16", "float16"):
        raise CliError(
            f"--measure loads float32, bfloat16 or float16, not {widths.dtype}; the nearest is bfloat16"
        )
    if widths.kv_dtype is not None:
        raise CliError("--measure keeps the KV cache in the dtype of the weights; leave out --kv-dtype")
    if widths.weight_bytes is not None:
        raise CliError("--measure weighs the weights itself; leave out --weights")
    for one in found:
        if not one.has_weights and one.loaded_name is None:
            raise CliError(
                f"{one.given}: a config without weights cannot be measured; "
                "give a folder, a hub id, 'bundled' or a named shape"
            )


def _measured(found: ModelConfig, plan: MemoryPlan, asked: AskedDevice) -> MeasuredPlan:
    from tunebatch.execute.torch.decode_steps import decode_step_times
    from tunebatch.execute.torch.load import load_executor
    from tunebatch.execute.torch.memory import measure_memory
    from tunebatch.report.measured_plan import measured_plan

    setting = plan.setting
    executor = load_executor(
        found.given,
        device=asked.device or "auto",
        dtype=setting.dtype,
        block_size=setting.block_size,
        max_slots=_CPU_SLOTS if plan.device.cpu_free_bytes is not None else _GPU_SLOTS,
        utilization=asked.utilization,
    )
    memory = measure_memory(executor, setting.batched_tokens)
    context = int(setting.prefix_tokens + plan.lengths.mean_context)
    return measured_plan(plan, memory, decode_step_times(executor, context))


def _print_json(plans: list[MemoryPlan], measured: list[MeasuredPlan]) -> None:
    from tunebatch.cli import output
    from tunebatch.report.plan_json import SCHEMA, plan_json
    from tunebatch.report.plan_measured import measured_json

    told = [plan_json(one) for one in plans]
    for one, taken in zip(told, measured, strict=False):
        one["measured"] = measured_json(taken)
    output.print_json({"schema": SCHEMA, "models": told})


def _print(plans: list[MemoryPlan], measured: list[MeasuredPlan], quiet: bool) -> None:
    from rich.text import Text

    from tunebatch.cli import output
    from tunebatch.report.plan_measured import measured_notes, measured_table
    from tunebatch.report.plan_table import plan_table
    from tunebatch.report.plan_text import headline, legend, notes, reason

    beside: Sequence[MeasuredPlan | None] = measured or [None] * len(plans)
    console = output.stdout()
    for one, taken in zip(plans, beside, strict=True):
        console.print(Text(headline(one, taken), style="bold"), soft_wrap=True)
    console.print()
    console.print(plan_table(plans))
    if measured:
        console.print()
        console.print(measured_table(plans, measured))
    if quiet:
        return
    console.print()
    for one, taken in zip(plans, beside, strict=True):
        console.print(reason(one, taken), soft_wrap=True)
    told = [note for one in plans for note in notes(one)]
    for line in dict.fromkeys([*told, *(note for taken in measured for note in measured_notes(taken))]):
        console.print(f"note: {line}", soft_wrap=True)
    peaks = dict.fromkeys(one.decode.peaks.source for one in plans if one.decode is not None)
    for line in (*peaks, legend(bool(measured))):
        console.print(Text(line, style="dim"), soft_wrap=True)
