"""The table of features: what can be added to any batching policy with ``+``."""

from __future__ import annotations

from dataclasses import dataclass

from tunebatch.engine.knobs import NUM_DRAFTS, Knob


@dataclass(frozen=True, slots=True)
class FeatureKind:
    """A row of the table: what can be tuned, and what one feature rules out.

    Attributes:
        excludes: Features that cannot stand beside it.
    """

    knobs: tuple[Knob, ...]
    summary: str
    excludes: tuple[str, ...] = ()


# In the order in which a strategy's name lists them.
FEATURES: dict[str, FeatureKind] = {
    "prefix": FeatureKind((), "computes a prefix that prompts share once"),
    "ngram": FeatureKind((NUM_DRAFTS,), "drafts what followed the same tokens before", ("draft",)),
    "draft": FeatureKind((NUM_DRAFTS,), "drafts with a small model", ("ngram",)),
}
DRAFTERS = ("ngram", "draft")
ALIASES = {"speculative": "draft"}
