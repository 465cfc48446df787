"""How many sequences may run, moved by how the steps go."""

from __future__ import annotations

from tunebatch.engine.policies.base import StepTaken

_SETTLE = 16  # steps after which a change shows in the recent step time
_WEIGHT = 1.0 / 8.0  # of the last step in it
_AFTER_A_CUT = 4  # times as long until the next rise, so that the limit does not swing
_CUT = 0.9
_RISE = 1.0 / 16.0  # of the limit, once it has been cut


class BatchLimit:
    """A batch limit that rises while requests wait for a place and falls when decodes get too slow.

    Additive increase, multiplicative decrease (Chiu and Jain, 1989), on the measured duration of the steps
    that decode, over the tokens that a step gives, which is the TPOT of whoever runs: doubling at first, as
    TCP's slow start does. It rises only when it kept a request out and the recent steps take at most
    ``target`` of the limit on the TPOT; it is cut when they take more than half of what is then left, or when
    blocks ran out and a sequence was preempted; between the two it stays. A change is judged once it has
    taken effect: as many as it allows run, and a few steps have been made.

    Args:
        least: The limit at the start, and the lowest.
        most: The highest.
        tpot_limit_s: Limit on the TPOT; None: only blocks that run out cut.
        target: Share of it up to which the limit rises.

    Attributes:
        size: Most sequences that may run.
    """

    def __init__(self, least: int, most: int, tpot_limit_s: float | None, target: float) -> None:
        self.size = min(least, most)
        self._least, self._most = self.size, most
        self._rise_s = None if tpot_limit_s is None else target * tpot_limit_s
        self._cut_s = None if tpot_limit_s is None else max(target, (1.0 + target) / 2.0) * tpot_limit_s
        self._recent_s: float | None = None
        self._wait = 0
        self._doubling = True
        self._queued = 0
        self._urgent = False
        self._ran_out = False

    def keeps_out(self, num_waiting: int, urgent: bool) -> None:
        """A request could have joined this step but for the limit.

        Args:
            urgent: It will soon have waited for longer than its TTFT may be; then the limit rises on, one by
                one, half as far as to where it would be cut.
        """
        self._queued, self._urgent = num_waiting, urgent

    def took(self, step: StepTaken) -> None:
        queued, self._queued = self._queued, 0
        self._wait -= 1
        self._ran_out = self._ran_out or step.num_preempted > 0
        if step.num_decodes == 0:
            return
        tpot_s = step.duration_s / (1.0 + step.num_accepted / step.num_decodes)
        before_s = tpot_s if self._recent_s is None else self._recent_s
        self._recent_s = before_s + _WEIGHT * (tpot_s - before_s)
        if self._wait > 0 or step.num_decodes > self.size:
            return
        if self._ran_out or (self._cut_s is not None and self._recent_s > self._cut_s):
            self._cut(step.num_decodes)
        elif queued:
            self._rise(min(queued, self._headroom(self._recent_s)))

    def _headroom(self, recent_s: float) -> int:
        """By how many the limit may rise."""
        if self._rise_s is None or self._cut_s is None or recent_s <= self._rise_s:
            return self.size if self._doubling else max(int(_RISE * self.size), 1)
        return 1 if self._urgent and recent_s <= 0.5 * (self._rise_s + self._cut_s) else 0

    def _cut(self, num_running: int) -> None:
        self.size = max(int(_CUT * min(self.size, num_running)), self._least)
        self._ran_out = self._doubling = False
        self._wait = _AFTER_A_CUT * _SETTLE

    def _rise(self, by: int) -> None:
        if by > 0:
            self.size = min(self.size + by, self._most)
            self._wait = _SETTLE
