"""The table of features: what can be added to any batching policy with ``+``."""

from __future__ import annotations

from dataclasses import dataclass

from tunebatch.engine.knobs import NUM_DRAFTS, Knob


@dataclass(frozen=True, slots=True)
class FeatureKind:
    """A row of the table: what can be tuned, and what one feature rules out.

    Attributes:
        title: What it is called in a sentence.
        excludes: Features that cannot stand beside it.
    """

    knobs: tuple[Knob, ...]
    title: str
    summary: str
    excludes: tuple[str, ...] = ()


# In the order in which a strategy's name lists them.
FEATURES: dict[str, FeatureKind] = {
    "prefix": FeatureKind((), "prefix caching", "computes a prefix that prompts share once"),
    "ngram": FeatureKind(
        (NUM_DRAFTS,), "drafting by ngram", "drafts what followed the same tokens before", ("draft",)
    ),
    "draft": FeatureKind((NUM_DRAFTS,), "drafting by a model", "drafts with a small model", ("ngram",)),
}
DRAFTERS = ("ngram", "draft")
# Of one group a strategy has one feature or none; every feature is in one.
GROUPS: dict[str, tuple[str, ...]] = {"prefix": ("prefix",), "drafts": DRAFTERS}
ALIASES = {"speculative": "draft"}
