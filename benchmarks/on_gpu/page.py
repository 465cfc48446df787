"""The report: Markdown for people, made from the JSON for programs; nothing here measures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

SCHEMA = "tunebatch.gpu.v1"
DRY = "**A dry run on a CPU with tiny models: it shows that everything runs. No figure here is of a GPU.**"


def to_markdown(data: Mapping[str, Any], texts: Mapping[str, str]) -> str:
    """Bars first, then a section a part, then what was not measured.

    Args:
        data: As it is written to ``gpu.json``.
        texts: What each part asks, by its name, in order.
    """
    facts, parts = data["environment"], data["parts"]
    lines = [f"# The GPU engine on {facts.get('gpu') or 'a CPU'}", ""]
    if data["dry"]:
        lines += [DRY, ""]
    lines += [
        "Written by `benchmarks/gpu.py`. A ratio is of two things measured in one run; ceilings are measured "
        "in the run of each part. Weights are random, shapes are the published ones.",
        "",
        f"- {facts.get('gpu') or 'no GPU'}, driver {facts.get('gpu_driver') or 'n/a'}; {facts['cpu']}, "
        f"{facts['cores']} cores",
        f"- python {facts['python']}, torch {facts['torch']}, triton {facts.get('triton') or 'n/a'}, "
        f"transformers {facts['transformers']}, tunebatch {facts['tunebatch']}",
        "",
        "## Bars",
        "",
        *_bars(data),
    ]
    for name, text in texts.items():
        if name in parts:
            lines += ["", *_section(name, text, parts[name])]
    missing = not_measured(data, texts)
    lines += ["", "## Not measured", "", *(f"- {line}" for line in missing or ["nothing is missing"])]
    return "\n".join(lines) + "\n"


def not_measured(data: Mapping[str, Any], texts: Mapping[str, str]) -> list[str]:
    """A line for each thing that has no number, and why."""
    lines = [f"{name}: not run" for name in texts if name not in data["parts"]]
    for name, part in data["parts"].items():
        lines += [f"{name}: {why}" for why in (part["failed"],) if why]
        lines += [f"{name}: {line}" for line in part["not_measured"]]
    return lines


def bars_of(data: Mapping[str, Any]) -> list[dict[str, Any]]:
    """All bars; a dry run is held to none."""
    bars = [bar for part in data["parts"].values() for bar in part["bars"]]
    if not data["dry"]:
        return bars
    return [
        bar | {"measured": f"a tiny model on a CPU: {bar['measured']}", "verdict": "dry run"} for bar in bars
    ]


def _bars(data: Mapping[str, Any]) -> list[str]:
    rows = [
        f"{bar['bar']} | {bar['wanted']} | {bar['measured']} | {bar['verdict']}"
        for bar in [*bars_of(data), *data["bars_not_run"]]
    ]
    return _table("bar | wanted | measured | verdict", rows)


def _section(name: str, text: str, part: Mapping[str, Any]) -> list[str]:
    lines = [f"## {name}", "", text]
    if part["failed"]:
        return [*lines, "", f"**It broke off: {part['failed']}**"]
    lines += ["", f"{part['setting']}."]
    if ceilings := part["ceilings"]:
        lines += [
            "",
            f"Measured {part['date']}, commit {part['commit'] or 'unknown'}, in {part['seconds']:.0f} s; "
            f"ceilings {ceilings['flops_per_s'] / 1e12:.4g} TFLOP/s and {ceilings['bytes_per_s'] / 1e9:.4g} "
            "GB/s.",
        ]
    for table in part["tables"]:
        lines += ["", f"{table['title']}:", "", *_table(table["header"], table["rows"])]
    return lines


def _table(header: str, rows: Sequence[str]) -> list[str]:
    rule = " | ".join(["---"] * (header.count("|") + 1))
    return [f"| {line} |" for line in (header, rule, *rows)]
