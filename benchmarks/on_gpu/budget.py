"""Time: what a part may take of the minutes that a machine is there for."""

from __future__ import annotations

import time


class Budget:
    """Seconds that run from now."""

    def __init__(self, seconds: float) -> None:
        self._ends_s = time.perf_counter() + seconds

    def left_s(self) -> float:
        return max(0.0, self._ends_s - time.perf_counter())

    def over(self) -> bool:
        return self.left_s() <= 0.0

    def share(self, parts: int) -> Budget:
        """One of so many equal parts of what is left."""
        return Budget(self.left_s() / max(1, parts))


def allowed_s(wanted_s: float, wanted_by_all_s: float, left_s: float | None) -> float:
    """What one of several parts may take: what it wants, or its share of what is left for all of them.

    Args:
        wanted_by_all_s: By it and by those that are still to come.
        left_s: None: there is no hurry.
    """
    if left_s is None:
        return wanted_s
    return min(wanted_s, left_s * wanted_s / wanted_by_all_s)
