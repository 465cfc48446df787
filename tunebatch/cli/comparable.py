"""Whether saved results are of the same work, so that they differ by what served it alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunebatch.cli.errors import NOT_COMPARABLE, CliError

if TYPE_CHECKING:
    from tunebatch.measure.result import RunResult


def refuse_other_work(paths: Sequence[Path], results: Sequence[RunResult]) -> None:
    """Compares every result with the first.

    Raises:
        CliError: Another model, machine, SLO or traffic than a rate makes of it; says which, and where.
    """
    from tunebatch.report.speculation import rates_text

    first, *others = results
    for path, result in zip(paths[1:], others, strict=True):
        for what, value in _identity(first).items():
            other = _identity(result)[what]
            if other != value and not (what == "workload" and _differs_by_rate_only(first, result)):
                difference = f"{what} {other!r}, not {value!r}"
                if what == "workload":
                    difference = f"another workload, {_traffic_difference(first, result)}"
                raise CliError(f"{path} is not comparable with {paths[0]}: {difference}", NOT_COMPARABLE)
    drawn = {
        rates_text(one.speculation.synthetic_acceptance) for one in results if one.speculation is not None
    }
    if len(drawn) > 1:
        raise CliError(f"not comparable: synthetic acceptance {' and '.join(sorted(drawn))}", NOT_COMPARABLE)


def other_versions(found: list[tuple[str, RunResult]]) -> list[str]:
    """What was measured with other versions than the first; to compare them may be what is wanted."""
    (first, base), *others = found
    told = []
    for mark, result in others:
        for name in ("tunebatch", "torch", "transformers", "numba"):
            one, other = base.environment.get(name), result.environment.get(name)
            if one != other:
                told.append(f"{mark} was measured with {name} {other}, {first} with {one}")
    return told


def _identity(result: RunResult) -> dict[str, Any]:
    """What must be the same, or a difference is not the strategy's."""
    return {
        "workload": result.workload.get("fingerprint"),
        "model": result.model.get("name"),
        "dtype": result.model.get("dtype"),
        "forward": result.model.get("forward"),
        "attention backend": result.model.get("attention_backend"),
        "block size": result.model.get("block_size"),
        "device": result.model.get("device"),
        "processor": result.environment.get("cpu"),
        "cores": result.environment.get("cores"),
        "GPU": result.environment.get("gpu"),
        "SLO": result.slo,
    }


def _differs_by_rate_only(first: RunResult, other: RunResult) -> bool:
    """The same traffic, which came faster in one and so, to last as long, had more requests."""
    one, two = first.workload, other.workload
    rates = one.get("rate_per_s"), two.get("rate_per_s")
    if None in rates or rates[0] == rates[1] or one.get("likeness") is None:
        return False
    return one["likeness"] == two.get("likeness") and one.get("seed") == two.get("seed")


def _traffic_difference(first: RunResult, other: RunResult) -> str:
    """What a user can make equal; fingerprints only tell that something differs."""
    differing = []
    for key, words in (("rate_per_s", "rate"), ("seed", "seed"), ("num_requests", "requests")):
        one, two = first.workload.get(key), other.workload.get(key)
        if one != two:
            # Without a rate requests come all at once, or one after another's answer.
            shown = ["none" if value is None else f"{value}" for value in (two, one)]
            differing.append(f"{words} {shown[0]}, not {shown[1]}")
    if differing:
        return "; ".join(differing)
    return (
        "of the same rate, seed and number of requests, but other prompts, lengths or times: "
        f"{other.workload.get('description')!r}, not {first.workload.get('description')!r}"
    )
