"""How much energy a GPU took: by its own counter, or by its power over time."""

from __future__ import annotations

from typing import Literal

EnergySource = Literal["counter", "power"]


class EnergyMeter:
    """Joules from the first reading to the last.

    The GPU's counter misses nothing between two readings. Without one, power is integrated by the
    trapezoid rule, across readings that are missing too.
    """

    __slots__ = ("_first_j", "_from_power_j", "_last_j", "_last_power_w", "_last_s", "_num_powers")

    def __init__(self) -> None:
        self._first_j: float | None = None
        self._last_j: float | None = None
        self._from_power_j = 0.0
        self._last_power_w, self._last_s = 0.0, 0.0
        self._num_powers = 0

    def add(self, at_s: float, counter_j: float | None, power_w: float | None) -> None:
        """Take a reading; None for what the GPU does not tell."""
        if counter_j is not None:
            self._first_j = counter_j if self._first_j is None else self._first_j
            self._last_j = counter_j
        if power_w is None:
            return
        if self._num_powers:
            self._from_power_j += 0.5 * (power_w + self._last_power_w) * (at_s - self._last_s)
        self._last_power_w, self._last_s = power_w, at_s
        self._num_powers += 1

    def energy_j(self) -> tuple[float, EnergySource] | None:
        """Joules and where they are from; None with neither a counter that moved nor two powers.

        A counter that went back, as after the driver was loaded anew, tells nothing.
        """
        if self._first_j is not None and self._last_j is not None and self._last_j > self._first_j:
            return self._last_j - self._first_j, "counter"
        return (self._from_power_j, "power") if self._num_powers >= 2 else None
