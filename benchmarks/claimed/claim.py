"""A claim, what was measured of it, and the verdict; nothing here measures."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from claimed.bench import Bench


class Verdict(StrEnum):
    """What became of a claim on this machine."""

    HOLDS = "holds"
    ABOVE = "holds, above the claimed range"
    IN_PART = "holds in part"
    NOT = "does not hold"


@dataclass(frozen=True, slots=True)
class Figure:
    """One number, as often as it was measured.

    Attributes:
        samples: At least one.
        unit: ``x`` of a ratio, ``%`` of a share.
    """

    samples: tuple[float, ...]
    unit: str = "x"

    @property
    def value(self) -> float:
        return statistics.median(self.samples)

    def text(self) -> str:
        """The median, with the least and the most of several that differ."""
        low, middle, high = (
            number(one, self.unit) for one in (min(self.samples), self.value, max(self.samples))
        )
        return middle if low == high else f"{middle} [{low}, {high}]"


@dataclass(frozen=True, slots=True)
class Band:
    """Bounds of a number, both inside."""

    low: float = -math.inf
    high: float = math.inf

    def holds(self, value: float) -> bool:
        return self.low <= value <= self.high

    def text(self, unit: str) -> str:
        if self.high == math.inf:
            return f"at least {number(self.low, unit)}"
        if self.low == -math.inf:
            return f"at most {number(self.high, unit)}"
        return f"{number(self.low, unit)} to {number(self.high, unit)}"


@dataclass(frozen=True, slots=True)
class Check:
    """What a claim says of one figure.

    Attributes:
        figure: Its name.
        claimed: Where the claim holds.
        partly: Where it has the direction right, and not the size. Without an upper end more than was claimed
            is no less true; with one it is another thing than was claimed.
    """

    figure: str
    claimed: Band
    partly: Band

    def verdict(self, value: float) -> Verdict:
        if self.claimed.holds(value):
            return Verdict.HOLDS
        if value > self.claimed.high and self.partly.high == math.inf:
            return Verdict.ABOVE
        return Verdict.IN_PART if self.partly.holds(value) else Verdict.NOT


def at_least(figure: str, claimed: float, partly: float) -> Check:
    return Check(figure, Band(low=claimed), Band(low=partly))


def from_to(figure: str, low: float, high: float, partly: float) -> Check:
    """More than ``high`` holds too, and the verdict says that it is more than was claimed."""
    return Check(figure, Band(low, high), Band(low=partly))


def at_most(figure: str, claimed: float, partly: float) -> Check:
    return Check(figure, Band(high=claimed), Band(high=partly))


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under a title; the cells of a row, and of the header, stand between bars."""

    title: str
    header: str
    rows: Sequence[str]


@dataclass(frozen=True, slots=True)
class Finding:
    """What was measured of one claim.

    Attributes:
        setting: Workload, settings and number of requests, in words.
        figures: What the checks look at, and others beside, by name.
        why: One sentence that explains them.
    """

    setting: str
    figures: Mapping[str, Figure]
    why: str
    tables: tuple[Table, ...] = ()


@dataclass(frozen=True, slots=True)
class Claim:
    """What is commonly said.

    Attributes:
        name: One word.
        text: A sentence.
        checks: What that means for figures; at least one.
        measure: Measures them.
    """

    name: str
    text: str
    checks: tuple[Check, ...]
    measure: Callable[[Bench], Finding]


@dataclass(frozen=True, slots=True)
class Judged:
    """A claim with what was found.

    Attributes:
        number: Its place among all claims, from 1.
        foreign_cpu_share: The largest share of the cores that others had during a run, 0 to 1; None: unknown.
    """

    number: int
    claim: Claim
    finding: Finding
    seconds: float = 0.0
    foreign_cpu_share: float | None = None

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """Each check's own, of the median."""
        return tuple(check.verdict(self.figure(check).value) for check in self.claim.checks)

    @property
    def verdict(self) -> Verdict:
        """What all checks agree on, or that the claim holds in part; where all hold, some of them above their
        range, that it holds above it."""
        found = set(self.verdicts)
        if found == {Verdict.HOLDS, Verdict.ABOVE}:
            return Verdict.ABOVE
        return self.verdicts[0] if len(found) == 1 else Verdict.IN_PART

    @property
    def close(self) -> tuple[str, ...]:
        """Figures whose repeats would be judged differently."""
        checks = self.claim.checks
        return tuple(one.figure for one in checks if len(set(map(one.verdict, self.figure(one).samples))) > 1)

    def figure(self, check: Check) -> Figure:
        return self.finding.figures[check.figure]


def number(value: float, unit: str) -> str:
    """``4.20x``, ``37.5 %``."""
    if unit == "%":
        return f"{100 * value:.3g} %"
    return f"{value:.2f}{unit}" if abs(value) < 10 else f"{value:.1f}{unit}"
