"""Every run of a sweep, kept on disk when it ends, so that none is measured twice."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from tunebatch.engine.strategies import Strategy
from tunebatch.measure.result import ResultError, RunResult, read_result, write_result
from tunebatch.measure.telemetry.cautions import NOISY_SHARE
from tunebatch.tune.capacity import NotEnoughEvidenceError, is_sustained
from tunebatch.tune.facts import MeasureFn
from tunebatch.tune.space import config_hash

__all__ = ["Runs"]

_MOST_IN_VAIN = 3  # repetitions that were disturbed too, after which they are the machine's usual state


class Runs:
    """A measuring function with a memory; called as the one that it wraps.

    A search that was cut off asks the same questions again when it is resumed, and gets the answers that
    it had. A run that missed its limits while others took the processor says nothing about the strategy: it
    is measured once more, and the quieter one counts.

    Attributes:
        num_new: Runs that were measured, not recalled.
        num_repeated: Runs that were measured once more, as others disturbed them.
        foreign_cpu_share: The largest share of the processor that other programs took in one of those.
    """

    def __init__(self, measure: MeasureFn, directory: Path) -> None:
        self._measure = measure
        self._directory = directory
        self.num_new = 0
        self.num_repeated = 0
        self._in_vain = 0
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
        result = self._measured(chosen, rate, seed, stop_early, least_s, glimpse_s)
        if glimpse_s is None and self._in_vain < _MOST_IN_VAIN and _may_be_others_fault(result):
            again = self._measured(chosen, rate, seed, stop_early, least_s, None)
            self.num_repeated += 1
            self._in_vain = self._in_vain + 1 if _foreign(again) > NOISY_SHARE else 0
            result = min(result, again, key=_foreign)
        self.num_new += 1
        share = result.environment.get("foreign_cpu_share")
        if share is not None:
            self.foreign_cpu_share = max(self.foreign_cpu_share or 0.0, share)
        write_result(dataclasses.replace(result, record=None), folder)
        return result

    def _measured(
        self,
        chosen: Strategy,
        rate: float | None,
        seed: int,
        stop_early: bool,
        least_s: float,
        glimpse_s: float | None,
    ) -> RunResult:
        return self._measure(chosen, rate, seed, stop_early=stop_early, least_s=least_s, glimpse_s=glimpse_s)

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


def _foreign(result: RunResult) -> float:
    return float(result.environment.get("foreign_cpu_share") or 0.0)


def _may_be_others_fault(result: RunResult) -> bool:
    """A miss, or a throughput, of a run that others disturbed."""
    if _foreign(result) <= NOISY_SHARE:
        return False
    try:
        return result.verdict is None or not is_sustained(result)
    except NotEnoughEvidenceError:
        return False


def _read(folder: Path) -> RunResult | None:
    try:
        return read_result(folder)
    except ResultError:
        return None
