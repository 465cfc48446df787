"""What every report is made of: one row per strategy, and how a number is written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tunebatch.engine.knobs import FORECAST_KV, SORT_BY_LENGTH, SWITCHES
from tunebatch.measure.limits import MetricName, Slo, StatisticName, parse_slo
from tunebatch.measure.result import RunResult
from tunebatch.report.speculation import name_of

BASELINE = "static"


@dataclass(frozen=True, slots=True)
class Row:
    """One strategy with its knobs, as measured.

    Attributes:
        rate_per_s: Requests a second: the capacity inside the SLO, or the throughput where no
            capacity was searched; None when the SLO was missed at every rate.
        tuned: The knobs were searched, not the defaults.
        source: A mark of the saved result that it was read from.
        beyond: What the first rate above the capacity missed, in words; empty when there is nothing to say.
        at_least: No rate was too high for it in the time there was.
        unconfirmed: The rate is of the search only, while others were measured again.
    """

    result: RunResult
    rate_per_s: float | None
    tuned: bool = False
    source: str = ""
    beyond: str = ""
    unconfirmed: bool = False
    at_least: bool = False

    @property
    def strategy(self) -> str:
        return self.result.strategy

    @property
    def name(self) -> str:
        """The strategy, told from other rows of the same one by its mark; what hangs on drafts that were
        accepted by chance says so."""
        return " ".join(filter(None, [name_of(self.result), self.source]))

    @property
    def knobs(self) -> str:
        return knobs_text(self.result.knobs)


def knobs_text(knobs: Mapping[str, object]) -> str:
    """``max_batch_size 48, max_delay_s 0.05``"""
    return ", ".join(
        f"{name} {_knob(value)}" for name, value in knobs.items() if value or name not in SWITCHES
    )


def short_knobs(knobs: Mapping[str, object]) -> str:
    """``batch 48, wait 50 ms, 2048 tokens, chunk 256``: for lines that are short of room."""
    words = []
    for name, value in knobs.items():
        if name == "max_batch_size":
            least = knobs.get("min_batch_size")
            words.append(f"batch {value}" if least is None else f"batch {least}-{value}")
        elif name == "min_batch_size":
            continue
        elif name == "max_batched_tokens":
            words.append(f"{value} tokens")
        elif name == "chunk_size":
            words.append(f"chunk {value}")
        elif name == "max_partial_prefills":
            words.append(f"partial {value}")
        elif name == "num_drafts":
            words.append(f"drafts {value}")
        elif name == "max_delay_s" and isinstance(value, int | float):
            words.append(f"wait {short_duration(value)}")
        elif name == SORT_BY_LENGTH.name:
            words += ["sorted"] if value else []
        elif name == FORECAST_KV.name:
            words += ["KV forecast"] if value else []
        else:
            words.append(f"{name} {_knob(value)}")
    return ", ".join(words)


def _knob(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def ratio_to(row: Row, base: Row | None) -> float | None:
    """How many times the base's rate; None where either has none."""
    if base is None or not base.rate_per_s or row.rate_per_s is None:
        return None
    return row.rate_per_s / base.rate_per_s


def baseline(rows: Iterable[Row]) -> Row | None:
    """The row that the others are multiples of: the best one of static batching, with features if it has none
    without."""
    rows = list(rows)
    of_baseline = [row for row in rows if row.strategy == BASELINE]
    of_baseline = of_baseline or [row for row in rows if row.strategy.partition("+")[0] == BASELINE]
    return max(of_baseline, key=lambda row: row.rate_per_s or 0.0) if of_baseline else None


def shown_statistic(slo: Slo, metric: MetricName) -> StatisticName:
    """The statistic that the SLO limits, so that the table shows what was judged; else p90."""
    return next((limit.statistic for limit in slo if limit.metric == metric), "p90")


def slo_of(rows: Iterable[Row]) -> Slo:
    return next((parse_slo(row.result.slo) for row in rows if row.result.slo), Slo(()))


def number(value: float | None, digits: int = 3) -> str:
    """Three digits, no exponent; a dash for what there is not."""
    if value is None:
        return "-"
    if value == 0 or 1e-3 <= abs(value) < 999.5:
        return f"{value:#.{digits}g}".rstrip(".")
    return f"{value:,.0f}" if abs(value) >= 1.0 else f"{value:.1e}"


def duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    if seconds >= 1.0:
        return f"{number(seconds)} s"
    return f"{number(seconds * 1e3)} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.0f} us"


def lacking(count: int, needed: int) -> str:
    """``n/a (64 of 662)``: a percentile that so many samples do not tell."""
    return f"n/a ({count:,} of {needed:,})"


def short_duration(seconds: float) -> str:
    """``50 ms``, ``1.5 s``: no digits that say nothing."""
    return f"{seconds:.3g} s" if seconds >= 1.0 else f"{seconds * 1e3:.3g} ms"


def clock_time(seconds: float) -> str:
    """``1:05``, ``1:02:03``"""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def hits_text(share: float, saved_tokens: float | None) -> str:
    """``hit rate 44 %, 1,280 tokens saved``; a result of a version that did not count them has none."""
    saved = "" if saved_tokens is None else f", {saved_tokens:,.0f} tokens saved"
    return f"hit rate {percent(share)}{saved}"


def percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f} %"
