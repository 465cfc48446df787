"""What a part of the benchmark finds, and the bars it is held to; nothing here measures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from claimed.claim import Band, Figure, Table

if TYPE_CHECKING:
    from on_gpu.bench import GpuBench


class WrongResultError(RuntimeError):
    """The engine computes something else than it should; nothing may be timed. One line."""


@dataclass(frozen=True, slots=True)
class Bar:
    """What is to be reached.

    Attributes:
        text: A sentence without its number.
        band: Where the figure should be.
        unit: As `claim.number` has it: ``x``, ``%``, or a unit with a space before it.
    """

    text: str
    band: Band
    unit: str = "x"

    def dict(self, figure: Figure | None, why_not: str = "") -> dict[str, Any]:
        """The bar with what was measured.

        Args:
            figure: None: it was not measured.
            why_not: The reason for that.
        """
        verdict = "not measured"
        if figure is not None:
            verdict = "met" if self.band.low <= figure.value <= self.band.high else "missed"
        return {
            "bar": self.text,
            "wanted": self.band.text(self.unit),
            "value": None if figure is None else figure.value,
            "samples": [] if figure is None else list(figure.samples),
            "measured": why_not if figure is None else figure.text(),
            "verdict": verdict,
        }


@dataclass(slots=True)
class Found:
    """What a part measured.

    Attributes:
        setting: Models, sizes and number of repeats, in words.
        bars: See `Bar.dict`.
        data: The numbers, for programs.
        not_measured: What was left out, and why; a line each.
    """

    setting: str
    tables: list[Table] = field(default_factory=list)
    bars: list[dict[str, Any]] = field(default_factory=list)
    data: Mapping[str, Any] = field(default_factory=dict)
    not_measured: list[str] = field(default_factory=list)

    def dict(self) -> dict[str, Any]:
        return {
            "setting": self.setting,
            "bars": self.bars,
            "tables": [
                {"title": table.title, "header": table.header, "rows": list(table.rows)}
                for table in self.tables
            ],
            "not_measured": self.not_measured,
            "data": dict(self.data),
        }


@dataclass(frozen=True, slots=True)
class Part:
    """One thing that the benchmark measures.

    Attributes:
        budget_s: What it takes where nobody hurries; with less it measures less, and says what.
        bars: What it judges; not measured where it breaks off.
        measure: May raise `WrongResultError`.
    """

    name: str
    text: str
    budget_s: float
    measure: Callable[[GpuBench], Found]
    bars: tuple[Bar, ...] = ()
