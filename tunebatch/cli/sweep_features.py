"""What each feature that a sweep searched is worth, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tunebatch.engine.features import DRAFTERS, FEATURES
from tunebatch.report.rows import hits_text, number, percent, short_knobs
from tunebatch.report.speculation import SYNTHETIC, rates_text
from tunebatch.tune.space import Space

if TYPE_CHECKING:
    from tunebatch.profile import Profile
    from tunebatch.tune.facts import FeatureGain, SweepOutcome, TrialFacts

_WORTH = 1.15  # a ratio that one seed can tell: arrivals alone move a capacity by nearly as much


def feature_lines(outcome: SweepOutcome, asked: Profile) -> list[str]:
    """A line for each feature that was searched for the winner's strategy, such as
    ``prefix caching: 1.80x the capacity without it [1.68, 1.92] (hit rate 71 %, 1,280 tokens saved)``."""
    winner = outcome.winner
    if winner is None:
        return []
    space = Space(asked.search.strategies, features=asked.search.features)
    groups = space.groups_of(space.base_of(winner.strategy))
    told = {gain.feature: _worth(gain, winner, asked) for gain in outcome.features}
    unknown = "not measured at the same settings with it and without: give it more --time or --trials"
    return [
        f"{FEATURES[feature].title}: {told.get(feature, unknown)}"
        for members in groups.values()
        for feature in members
    ]


def features_json(outcome: SweepOutcome) -> list[dict[str, Any]]:
    """What was measured of each feature, in plain JSON types."""
    return [
        {
            "feature": gain.feature,
            "kept": gain.kept,
            "ratio": gain.ratio,
            "interval": list(gain.interval) if gain.interval else None,
            "confirmed": gain.confirmed,
            "with": gain.with_it.to_json(),
            "without": gain.without.to_json(),
        }
        for gain in outcome.features
    ]


def _worth(gain: FeatureGain, winner: TrialFacts, asked: Profile) -> str:
    what = "capacity" if asked.search.objective == "capacity" else "throughput"
    if gain.ratio is None:
        told = "without it nothing keeps the SLO"
    elif gain.ratio == 0.0:
        told = "does not fit in memory" if gain.with_it.oom else "nothing keeps the SLO with it"
    else:
        bounds = f" [{number(gain.interval[0])}, {number(gain.interval[1])}]" if gain.interval else ""
        told = f"{_bound(gain)}{number(gain.ratio)}x the {what} without it{bounds}{_how(gain, asked)}"
    return "; ".join([told, *_remarks(gain, winner)])


def _bound(gain: FeatureGain) -> str:
    """What the search knows of a ratio one side of which no rate was too high for."""
    if gain.confirmed:
        return ""
    open_ended = [
        bool(one.rates) and all(met for _, met in one.rates) for one in (gain.with_it, gain.without)
    ]
    return {(True, False): "at least ", (False, True): "at most "}.get((open_ended[0], open_ended[1]), "")


def _how(gain: FeatureGain, asked: Profile) -> str:
    """How often it found what it looked for; of drafts also beside how many sequences."""
    summary = gain.with_it.summary
    said = []
    if gain.feature == "prefix" and (share := summary.get("hit_rate")) is not None:
        said.append(hits_text(share, summary.get("saved_prefill_tokens")))
    if gain.feature in DRAFTERS:
        if asked.model.acceptance:
            said.append(f"{SYNTHETIC} {rates_text(asked.model.acceptance)}")
        elif (share := summary.get("acceptance")) is not None:
            said.append(f"acceptance {percent(share)}")
        if (batch := summary.get("mean_batch")) is not None:
            said.append(f"{number(batch)} sequences a step")
    return f" ({', '.join(said)})" if said else ""


def _remarks(gain: FeatureGain, winner: TrialFacts) -> list[str]:
    """What keeps the ratio from being the winner's own, or from being sure; and who won instead."""
    said = []
    if winner.config not in (gain.with_it.config, gain.without.config):
        knobs = short_knobs(gain.without.chosen.shown_knobs)
        said.append(f"measured with {' '.join(filter(None, [gain.without.strategy, knobs]))}")
    if winner.confirmed and not gain.confirmed:
        said.append("in the search only")
    if gain.ratio and _is_close(gain.ratio, gain.interval):
        said.append("too close to tell")
    if not gain.kept:
        rival = winner.chosen.drafter if gain.feature in DRAFTERS else None
        said.append(f"{rival} won" if rival else "off won")
    return said


def _is_close(ratio: float, interval: tuple[float, float] | None) -> bool:
    low, high = interval or (ratio / _WORTH, ratio * _WORTH)
    return low <= 1.0 <= high
