"""Options that several commands have, and what their texts mean."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunebatch.cli.errors import CliError

if TYPE_CHECKING:
    from tunebatch.engine.strategies import Strategy

_OFF = ("off", "no", "false", "n", "f")

_STRATEGIES = "sequential, static, dynamic, continuous, chunked, mixed, adaptive"
_PRESETS = "orca, vllm-v0, sarathi, vllm-v1, splitfuse, lightllm"
_WITH = "Features are added to any: +prefix, +ngram or +draft, as in mixed+prefix+ngram."
ONE_STRATEGY_HELP = f"{_STRATEGIES}; or a preset: {_PRESETS}. {_WITH}"
STRATEGY_HELP = (
    f"{_STRATEGIES}, or all of these; or a preset: {_PRESETS}. {_WITH} Several with commas, or repeat it."
)
FEATURES_HELP = "Switched on and off by the search: prefix, ngram, draft; all or none of these."
_PROFILE_HELP = "A TOML file, or a ready-made profile: quickstart, shared, chat-p99, smoke."

ProfileName = Annotated[
    str,
    typer.Option(
        "--profile",
        "-p",
        metavar="PROFILE",
        help=_PROFILE_HELP,
    ),
]
ProfileIfGiven = Annotated[
    str | None,
    typer.Option(
        "--profile",
        "-p",
        metavar="PROFILE",
        help=_PROFILE_HELP,
        show_default="quickstart",
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="MODEL",
        help="'bundled', a local folder, a hub id (owner/name), or random weights of a named shape such as "
        "llama-3.1-8b, qwen3-0.6b, llama-32m or llama-3.1-8b:4-layers.",
        show_default=False,
    ),
]
Draft = Annotated[
    str | None,
    typer.Option(
        "--draft",
        metavar="MODEL",
        help="The small model that +draft drafts with: a local folder, a hub id or a named shape.",
        show_default="the bundled one, for the bundled model",
    ),
]
Acceptance = Annotated[
    str | None,
    typer.Option(
        "--acceptance",
        metavar="RATE",
        help="With random weights: the probability that each further draft is accepted, such as 0.7, or "
        "0.8,0.7,0.6 for draft after draft. Results say 'synthetic acceptance'.",
        show_default=False,
    ),
]
Device = Annotated[
    str | None,
    typer.Option("--device", metavar="DEVICE", help="auto, cpu or cuda.", show_default=False),
]
Backend = Annotated[
    str | None,
    typer.Option(
        "--backend",
        metavar="NAME",
        help="Attention by triton, flashinfer, flash-attn-3, compiled, packed or reference; auto measures "
        "what a GPU has.",
        show_default=False,
    ),
]
Compile = Annotated[
    bool | None,
    typer.Option(
        "--compile",
        help="Send the model's own code through torch.compile if that makes a prefill faster; finding out "
        "takes minutes for large models.",
        show_default=False,
    ),
]
WorkloadName = Annotated[
    str | None,
    typer.Option(
        "--workload",
        "-w",
        metavar="NAME",
        help="quickstart, chat, multi-turn, system-prompt, rag, agents, code, summarize, long-prompt or "
        "offline; or the format of --trace-file: azure, burstgpt, mooncake, servegen, vidur or jsonl.",
        show_default=False,
    ),
]
TraceFile = Annotated[
    str | None,
    typer.Option(
        "--trace-file",
        metavar="FILE",
        help="Replay recorded requests; the format is found from the file.",
        show_default=False,
    ),
]
SloTexts = Annotated[
    list[str] | None,
    typer.Option(
        "--slo",
        metavar="LIMIT",
        help="Such as 'p90_ttft<=500ms': a statistic of ttft, tpot, itl or e2e. Repeat for more.",
        show_default=False,
    ),
]
Requests = Annotated[
    int | None,
    typer.Option(
        "--requests",
        "-n",
        metavar="N",
        help="Requests of a run; of a trace the first N [as many as the SLO needs].",
        show_default=False,
    ),
]
Seed = Annotated[
    int | None,
    typer.Option("--seed", metavar="N", help="Of arrivals, lengths and prompts.", show_default=False),
]
Rate = Annotated[
    float | None,
    typer.Option(
        "--rate",
        "-r",
        metavar="RATE",
        help="Requests per second [the trace's own, otherwise all at once].",
        show_default=False,
    ),
]


def path(named: str, mend: str) -> Callable[[str], Path]:
    """The parser of a path: an empty text would be the working folder.

    Args:
        named: The option or argument.
        mend: What to give in its place.
    """

    def parsed(text: str) -> Path:
        if not text.strip():
            raise CliError(f"{named} is empty; {mend}")
        return Path(text)

    return parsed


Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        "-o",
        metavar="FOLDER",
        help="Where results go [results/<name>].",
        show_default=False,
        parser=path("--out", "name a folder, or leave it out for one in results/"),
    ),
]
Trace = Annotated[
    Path | None,
    typer.Option(
        "--trace",
        metavar="FILE",
        help="Write what every slot and step did, for ui.perfetto.dev; of several strategies a file each.",
        show_default=False,
        parser=path("--trace", "name a file, such as trace.json, or leave it out"),
    ),
]
Telemetry = Annotated[
    bool,
    typer.Option(
        "--telemetry",
        help="Measure first what the device can do, and tell how much of it each run used (MFU, MBU).",
    ),
]
Ranges = Annotated[
    list[str] | None,
    typer.Option(
        "--knob",
        metavar="KNOB=RANGE",
        help="What the search keeps to, such as max_batch_size=4-128; one value pins it. Repeat for more.",
        show_default=False,
    ),
]
Sampler = Annotated[
    str | None,
    typer.Option(
        "--sampler",
        metavar="NAME",
        help="Who suggests configurations: gp, tpe or random [gp; tpe beyond 200 trials].",
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="The result as JSON on stdout, nothing else.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress; the answer only.")]


def overrides(
    *,
    model: str | None = None,
    draft: str | None = None,
    acceptance: str | None = None,
    device: str | None = None,
    backend: str | None = None,
    compiled: bool | None = None,
    workload: str | None = None,
    trace_file: str | None = None,
    slo: list[str] | None = None,
    requests: int | None = None,
    seed: int | None = None,
    overlap: bool | None = None,
    search: dict[str, Any] | None = None,
) -> dict[str, dict[str, Any]]:
    """The flags by section and key, as ``load_profile`` takes them."""
    return {
        "model": {
            "name": model,
            "draft": draft,
            "acceptance": acceptance,
            "device": device,
            "backend": backend,
            "compile": compiled,
        },
        "workload": {"name": workload, "trace_file": trace_file, "requests": requests, "seed": seed},
        "slo": slo_table(slo or []),
        "device": {"overlap": overlap},
        "search": {"seed": seed, **(search or {})},
    }


def slo_table(texts: list[str]) -> dict[str, str]:
    """``["p90_ttft<=500ms"]`` as ``{"p90_ttft": "500ms"}``.

    Raises:
        CliError: One cannot be understood, or limits what another does.
    """
    from tunebatch.measure.limits import Limit, Slo, SloError, parse_limit

    read: list[Limit] = []
    for text in texts:
        try:
            read.append(parse_limit(text))
            Slo(tuple(read))
        except SloError as error:
            raise CliError(f"--slo {text}: {error}") from None
    parts = [text.partition("<=") for text in texts]
    return {name.strip().lower(): value.strip() for name, _, value in parts}


def knob_values(texts: list[str]) -> dict[str, float | str]:
    """``["max_batch_size=32"]`` as numbers or ``auto``; whether that is possible, the strategy says.

    A knob in seconds may have a unit: ``max_delay_s=50ms``.
    """
    from tunebatch.engine.knobs import AUTO

    values: dict[str, float | str] = {}
    typed: dict[str, str] = {}
    for text in texts:
        name, found, value = (part.strip() for part in text.partition("="))
        if not found:
            raise CliError(f"--set {text!r} has no '='; write it like --set max_batch_size=32")
        if name in typed:
            both = f"keep one of {typed[name]!r} and {value!r}"
            alike = typed[name] == value
            raise CliError(f"--set {name} is given twice; {'leave one out' if alike else both}")
        typed[name] = value
        values[name] = AUTO if value.lower() == AUTO else _knob_number(name, value)
    return values


def _knob_number(name: str, value: str) -> float:
    from tunebatch.measure.limits import SloError, parse_duration
    from tunebatch.profile_knobs import unknown_knob

    try:
        return float(value)
    except ValueError:
        pass
    if problem := unknown_knob(name):
        raise CliError(f"--set {name}={value}: {problem}")
    if not name.endswith("_s"):
        told, nearest = _nearest_value(name, value)
        raise CliError(f"--set {name}: {value!r} is {told}; write it like --set {name}={nearest}")
    try:
        return parse_duration(f"--set {name}", value)
    except SloError as error:
        raise CliError(str(error)) from None


def _nearest_value(name: str, value: str) -> tuple[str, str]:
    """What a knob's value that is no number is not, and one that may have been meant."""
    from tunebatch.profile_knobs import knobs_named

    knob = knobs_named(name)[0]
    if knob.switch:
        return "neither 0 (off) nor 1 (on)", "0" if value.lower() in _OFF else "1"
    digits = re.match(r"\d+" if knob.integer else r"\d+(\.\d+)?", value)
    return "not a number", digits[0] if digits is not None else f"{knob.shown(knob.default)}"


def strategy_names(texts: list[str] | None) -> list[str] | None:
    """``["static,mixed+prefix"]`` as ``["static", "mixed+prefix"]``, as ``--features`` has its names; None
    where nothing is named. What they mean, the profile says."""
    return [name.strip() for text in texts for name in text.split(",")] if texts else None


def check_one_strategy(name: str) -> None:
    """Refuses what stands for several, and says who takes it."""
    if name.partition("+")[0] == "all" or "," in name:
        raise CliError(f"run measures one strategy; for {name}: tunebatch compare --strategy {name}")


def preset_notes(names: Iterable[str]) -> list[str]:
    """What the presets among the strategies are, where they come from and what they lack; a line each."""
    from tunebatch.engine.presets import PRESETS
    from tunebatch.engine.strategies import strategy

    return [
        f"{made.label}: {preset.source}; differs: {preset.differs}"
        for made in map(strategy, names)
        if (preset := PRESETS.get(made.policy)) is not None
    ]


def check_slots(chosen: Strategy, max_slots: int) -> None:
    """Refuses a batch that would silently be a smaller one."""
    batch = dict(chosen.knobs).get("max_batch_size", 0)
    if batch > max_slots:
        raise CliError(
            f"max_batch_size = {batch:g}: there are {max_slots} batch slots; the nearest valid value is "
            f"{max_slots}, or for more, [device] max_slots in a profile or TUNEBATCH_DEVICE_MAX_SLOTS"
        )


def check_rate(rate: float | None, flag: str = "--rate", without: str = "all at once") -> None:
    """Refuses a rate that is none.

    Args:
        without: What leaving it out means.
    """
    if rate is not None and not 0.0 < rate < float("inf"):
        raise CliError(
            f"{flag} {rate:g}: must be above 0 requests per second, such as 4; leave it out for {without}"
        )
