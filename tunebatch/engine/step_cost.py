"""What a step costs, learnt from the steps of the run itself."""

from __future__ import annotations

import math

# A change of the costs is learnt in about so many steps that show it.
_FORGETTING = 1.0 - 1.0 / 64.0
_COLD_STEPS = 2  # that are not learnt from: caches and clocks are cold, and nothing tells an outlier yet
_CLIP = 4.0  # errors above so many typical ones are outliers and count as that
# Less than this share of what was predicted, or this, is no outlier, however well the fit has done.
_LEAST_CLIP, _LEAST_CLIP_S = 0.05, 1e-4
# Features are counted in these, so that all of them are near 1 in a usual step.
_DECODES, _CONTEXT, _MORE_TOKENS = 16.0, 4096.0, 256.0
_DOUBT = 100.0  # variance of a coefficient before the first step, in noise variances


class StepCost:
    """An affine fit, ``step_s ~ a + b * decodes + c * context_sum + d * more_tokens``, where more tokens are
    those of prompts, and drafts.

    Recursive least squares with directional forgetting (Kulhavy, 1987): old steps are forgotten only as far
    as the new one tells something about the same combination of coefficients. What a run does not show for
    a while, such as prompts in a long stretch of decodes, is kept, and its uncertainty does not wind up. A
    step that takes far longer than usual (another program, a page fault) pulls no more than a moderate one,
    and a large step no more than a small one. The same durations give the same fit.

    Attributes:
        num_steps: Steps seen.
        num_token_steps: Steps learnt from that computed more tokens than their decodes.
    """

    __slots__ = ("_error_s", "_theta", "_variance", "num_steps", "num_token_steps")

    def __init__(self) -> None:
        self._theta = [0.0] * 4
        self._variance = _unknown()
        self._error_s = 0.0
        self.num_steps = 0
        self.num_token_steps = 0

    @property
    def fixed_s(self) -> float:
        """Of a step, whatever it computes: launches, weights that are read, the planning."""
        return max(self._theta[0], 0.0)

    @property
    def token_s(self) -> float:
        """Of one more token; 0 while unknown."""
        return max(self._theta[3], 0.0) / _MORE_TOKENS

    def decode_s(self, num_decodes: int, context_sum: int) -> float:
        """Of a step of so many decodes that attend to so many tokens, and no more."""
        theta = self._theta
        return max(theta[0] + theta[1] * num_decodes / _DECODES + theta[2] * context_sum / _CONTEXT, 0.0)

    def learn(self, num_decodes: int, context_sum: int, num_more_tokens: int, duration_s: float) -> None:
        """Take a step into account."""
        self.num_steps += 1
        if self.num_steps <= _COLD_STEPS or not math.isfinite(duration_s):
            return
        x1, x2, x3 = num_decodes / _DECODES, context_sum / _CONTEXT, num_more_tokens / _MORE_TOKENS
        # Large steps scatter more, so an error counts by the size of its step.
        weight = 1.0 / math.sqrt(1.0 + x1 * x1 + x2 * x2 + x3 * x3)
        x = (weight, weight * x1, weight * x2, weight * x3)
        theta, variance = self._theta, self._variance
        v = [a * x[0] + b * x[1] + c * x[2] + d * x[3] for a, b, c, d in variance]
        news = v[0] * x[0] + v[1] * x[1] + v[2] * x[2] + v[3] * x[3]
        predicted_s = theta[0] * x[0] + theta[1] * x[1] + theta[2] * x[2] + theta[3] * x[3]
        error_s = self._clipped(weight * duration_s - predicted_s, predicted_s)
        self.num_token_steps += num_more_tokens > 0
        if not 0.0 < news < math.inf:  # rounding has spoilt it, which is not known to happen
            self._variance = _unknown()
            return
        gain = error_s / (1.0 + news)
        shrink = (_FORGETTING - (1.0 - _FORGETTING) / news) / (_FORGETTING * (1.0 + news))
        for i in range(4):
            theta[i] += v[i] * gain
            for j in range(i, 4):
                variance[i][j] = variance[j][i] = variance[i][j] - shrink * v[i] * v[j]

    def _clipped(self, error_s: float, predicted_s: float) -> float:
        size_s = abs(error_s)
        if self.num_steps <= _COLD_STEPS + len(self._theta):
            self._error_s = max(self._error_s, size_s)
            return error_s
        size_s = min(size_s, max(_CLIP * self._error_s, _LEAST_CLIP * predicted_s, _LEAST_CLIP_S))
        self._error_s += 0.1 * (size_s - self._error_s)
        return math.copysign(size_s, error_s)


def _unknown() -> list[list[float]]:
    return [[_DOUBT if i == j else 0.0 for j in range(4)] for i in range(4)]
