"""The report, as Markdown for people and as JSON for programs; nothing here measures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from claimed.claim import Judged, Table, number

SCHEMA = "tunebatch.claims.v1"
LIBRARIES = ("tunebatch", "python", "torch", "transformers", "numpy", "numba")


def machine_folder(facts: Mapping[str, Any], device: str) -> str:
    """``cpu-2core``, or the GPU's name."""
    if device == "cuda" and facts.get("gpu"):
        return "-".join(str(facts["gpu"]).lower().split())
    return f"cpu-{facts['cores']}core"


def to_markdown(judged: Sequence[Judged], not_run: Sequence[str], facts: Mapping[str, Any]) -> str:
    """The summary first, then a section a claim.

    Args:
        not_run: Texts of the claims that were not measured.
        facts: The environment, and ``date``, ``commit``, ``model``, ``same_tokens``, ``rounds`` and
            ``seconds`` of the run.
    """
    foreign = [one.foreign_cpu_share for one in judged if one.foreign_cpu_share is not None]
    lines = [
        "# What is said of batching, measured",
        "",
        f"Written by `make claims`. A figure is the median of {facts['rounds']} rounds with [the least, the "
        "most]; the sides of a ratio took turns (A B B A), and a run that others disturbed was done anew. A "
        "claim *holds* when every figure that it is judged by is where it says, or beyond it to the better, "
        "which is then said; it *does not hold* when none has even its direction right, and otherwise *holds "
        "in part*; the bounds stand in each section. One machine, one small model: the reasons say what "
        "would differ elsewhere.",
        "",
        f"- {facts['cpu']}, {facts['cores']} cores, {facts['memory_bytes'] / 2**30:.0f} GiB; "
        f"{facts['platform']}",
        f"- {', '.join(f'{name} {facts[name]}' for name in LIBRARIES)}",
        f"- {facts['date']}, commit {facts['commit'] or 'unknown'}, {facts['seconds']:.0f} s; others used "
        + (
            f"{number(max(foreign), '%')} of the cores at most"
            if foreign
            else "an unknown share of the cores"
        ),
        f"- model: {facts['model']}",
        f"- {facts['same_tokens']}",
    ]
    if not_run:
        lines += ["", f"**Not run: {' '.join(not_run)}**"]
    rows = [
        f"{one.number}. [{one.claim.text}](#{one.claim.name}) | {one.finding.setting} | "
        f"{'<br>'.join(in_short(one))} | {told(one)} | {one.finding.why}"
        for one in judged
    ]
    lines += ["", *_table("claim | measured on | figures | verdict | why", rows)]
    for one in judged:
        lines += ["", *_section(one)]
    return "\n".join(lines) + "\n"


def to_json_dict(
    judged: Sequence[Judged], not_run: Sequence[str], facts: Mapping[str, Any]
) -> dict[str, Any]:
    """Every number that was measured, by claim."""
    claims = {one.claim.name: _claim_dict(one) for one in judged}
    return {"schema": SCHEMA, "environment": dict(facts), "not_run": list(not_run), "claims": claims}


def in_short(one: Judged) -> list[str]:
    """The figures that the claim is judged by."""
    return [f"{check.figure} {one.figure(check).text()}" for check in one.claim.checks]


def told(one: Judged) -> str:
    """The verdict, and whether a single round could have turned it."""
    return f"{one.verdict} (rounds disagree)" if one.close else str(one.verdict)


def _section(one: Judged) -> list[str]:
    checks = []
    for check, verdict in zip(one.claim.checks, one.verdicts, strict=True):
        figure, close = one.figure(check), " (rounds disagree)" * (check.figure in one.close)
        bounds = f"{check.claimed.text(figure.unit)} | {check.partly.text(figure.unit)}"
        checks.append(f"{check.figure} | {figure.text()} | {bounds} | {verdict}{close}")
    lines = [
        f"## {one.claim.name}",
        "",
        f"{one.claim.text} **{one.verdict.capitalize()}**: {one.finding.why}.",
        "",
        f"Measured on: {one.finding.setting}.",
        "",
        *_table("figure | measured | holds | holds in part | verdict", checks),
    ]
    for table in one.finding.tables:
        lines += ["", f"{table.title}:", "", *_table(table.header, table.rows)]
    return lines


def _table(header: str, rows: Sequence[str]) -> list[str]:
    return [f"| {line} |" for line in (header, " | ".join(["---"] * (header.count("|") + 1)), *rows)]


def _cells(table: Table) -> dict[str, Any]:
    return {"title": table.title, "rows": [line.split(" | ") for line in (table.header, *table.rows)]}


def _claim_dict(one: Judged) -> dict[str, Any]:
    found = one.finding
    return {
        "claim": one.claim.text,
        "verdict": str(one.verdict),
        "verdicts": {c.figure: str(v) for c, v in zip(one.claim.checks, one.verdicts, strict=True)},
        "rounds_disagree": list(one.close),
        "setting": found.setting,
        "why": found.why,
        "figures": {
            name: asdict(figure) | {"median": figure.value} for name, figure in found.figures.items()
        },
        "tables": [_cells(table) for table in found.tables],
        "seconds": round(one.seconds, 1),
        "foreign_cpu_share": one.foreign_cpu_share,
    }
