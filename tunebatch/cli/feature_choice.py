"""Which of the features that a sweep was asked to search can matter at all."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from tunebatch.engine.features import DRAFTERS
from tunebatch.tune.space import Space

if TYPE_CHECKING:
    from tunebatch.profile import Profile
    from tunebatch.workload.spec import Workload

_LEAST_SHARED = 0.01  # of the prompt tokens, below which no cache can be told from none


def without_idle_features(asked: Profile, workload: Workload) -> tuple[Profile, dict[str, str]]:
    """The same question without the features that cannot change its answer.

    Returns:
        The question, and by the name of each such feature why it is left out.
    """
    search = asked.search
    left_out = {feature: why for feature in search.features if (why := _idle(feature, asked, workload))}
    if not left_out:
        return asked, {}
    kept = [feature for feature in search.features if feature not in left_out]
    return dataclasses.replace(asked, search=search.model_copy(update={"features": kept})), left_out


def left_out_lines(left_out: dict[str, str]) -> list[str]:
    return [f"feature {feature} is left out of the search: {why}" for feature, why in left_out.items()]


def _idle(feature: str, asked: Profile, workload: Workload) -> str:
    """Why a feature cannot matter; empty if it can."""
    space = Space(asked.search.strategies, features=[feature])
    if not any(space.groups_of(name) for name in space.names):
        return "every strategy is named with it or with what rules it out, or is a preset"
    if feature == "prefix" and workload.shared_share < _LEAST_SHARED:
        return "no prompt of this workload begins like an earlier one"
    if feature in DRAFTERS and max(request.max_tokens for request in workload.requests) < 2:
        return "requests of one token leave nothing to draft"
    return ""
