"""The tunable numbers of a strategy."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import Any

AUTO = "auto"


@dataclass(frozen=True, slots=True)
class Knob:
    """One tunable number: its range for the search, and the default that an expert would set.

    Attributes:
        integer: Values are whole numbers.
        unit: What one of it is, for people.
        switch: 0 or 1, by default off. It is searched where all requests come at once, as none matters much
            elsewhere, and where a range is asked for.
        auto: The policy can find the value itself: ``auto``, which is 0 among numbers.
    """

    name: str
    low: float
    high: float
    default: float
    unit: str
    integer: bool = True
    switch: bool = False
    auto: bool = False

    def checked(self, value: Any) -> float | int:
        """The value as the policy takes it.

        Raises:
            ValueError: It is impossible; says the nearest possible one.
        """
        if self.switch:
            if value not in (0, 1):
                raise ValueError(f"{self.name} = {value!r}: must be 0 or 1 ({self.unit})")
            return int(value)
        if self.auto and value in (AUTO, 0) and value is not False:
            return 0
        if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
            or_auto = f" or {AUTO!r}" if self.auto else ""
            raise ValueError(f"{self.name} = {value!r}: must be a finite number{or_auto} ({self.unit})")
        number = float(value)
        least = 1 if self.integer else 0
        if self.integer and not number.is_integer():
            nearest = max(least, round(number))
            raise ValueError(f"{self.name} = {number:g}: must be a whole number, nearest is {nearest}")
        if number < least:
            raise ValueError(f"{self.name} = {number:g}: the least possible value is {least} ({self.unit})")
        return int(number) if self.integer else number

    def shown(self, value: float | int) -> float | int | str:
        """The value as people and result files have it."""
        return AUTO if self.auto and value == 0 else value


MAX_BATCH_SIZE = Knob("max_batch_size", 1, 64, 32, "sequences")
MAX_BATCHED_TOKENS = Knob("max_batched_tokens", 128, 4096, 2048, "prompt tokens per step")
SORT_BY_LENGTH = Knob("sort_by_length", 0, 1, 0, "1: batches of alike lengths", switch=True)
FORECAST_KV = Knob("forecast_kv", 0, 1, 0, "1: admission by the predicted peak of the KV cache", switch=True)
MAX_DELAY = Knob("max_delay_s", 0.001, 2.0, 0.05, "seconds", integer=False)
CHUNK_SIZE = Knob("chunk_size", 32, 8192, 256, "prompt tokens per chunk")
STEP_TOKENS = Knob("chunk_size", 32, 8192, 512, "tokens per step", auto=True)
MAX_PARTIAL_PREFILLS = Knob("max_partial_prefills", 1, 8, 2, "prompts")
MIN_BATCH_SIZE = Knob("min_batch_size", 1, 16, 4, "sequences")
TARGET = Knob("target", 0.5, 1.0, 0.9, "of the limit on the TPOT", integer=False)
NUM_DRAFTS = Knob("num_drafts", 1, 8, 0, "draft tokens per sequence and step", auto=True)
# Not told of where they are off.
SWITCHES = (SORT_BY_LENGTH.name, FORECAST_KV.name)
