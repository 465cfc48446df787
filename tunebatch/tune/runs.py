"""Every run of a sweep, kept on disk when it ends, so that none is measured twice."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from tunebatch.engine.strategies import Strategy
from tunebatch.measure.result import ResultError, RunResult, read_result, write_result
from tunebatch.tune.facts import MeasureFn
from tunebatch.tune.space import config_hash

__all__ = ["Runs"]


class Runs:
    """A measuring function with a memory; called as the one that it wraps.

    A search that was cut off asks the same questions again when it is resumed, and gets the answers that
    it had.

    Attributes:
        num_new: Runs that were measured, not recalled.
        foreign_cpu_share: The largest share of the processor that other programs took in one of those.
    """

    def __init__(self, measure: MeasureFn, directory: Path) -> None:
        self._measure = measure
        self._directory = directory
        self.num_new = 0
        self.foreign_cpu_share: float | None = None

    def __call__(
        self,
        chosen: Strategy,
        rate: float | None,
        seed: int,
        *,
        stop_early: bool = False,
        least_s: float = 0.0,
        glimpse_s: float | None = None,
    ) -> RunResult:
        """See ``MeasureFn``. A recalled run has no records.

        Raises:
            ResultError: The run could not be written; those before it are kept.
        """
        folder = self._folder(chosen, rate, seed, stop_early, glimpse_s is not None)
        kept = _read(folder)
        if kept is not None:
            return kept
        result = self._measure(
            chosen, rate, seed, stop_early=stop_early, least_s=least_s, glimpse_s=glimpse_s
        )
        self.num_new += 1
        share = result.environment.get("foreign_cpu_share")
        if share is not None:
            self.foreign_cpu_share = max(self.foreign_cpu_share or 0.0, share)
        write_result(dataclasses.replace(result, record=None), folder)
        return result

    def recall(
        self, chosen: Strategy, rate: float | None, seed: int, *, stop_early: bool = False
    ) -> RunResult | None:
        """The run as it was kept, without records; None when it was never measured."""
        return _read(self._folder(chosen, rate, seed, stop_early, glimpse=False))

    def _folder(
        self, chosen: Strategy, rate: float | None, seed: int, stop_early: bool, glimpse: bool
    ) -> Path:
        at = "saturated" if rate is None else f"{rate:.9g}"
        kind = "glimpse" if glimpse else "judged" if stop_early else "whole"
        return self._directory / config_hash(chosen) / f"seed{seed}-{at}-{kind}"


def _read(folder: Path) -> RunResult | None:
    try:
        return read_result(folder)
    except ResultError:
        return None
