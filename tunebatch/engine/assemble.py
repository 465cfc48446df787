"""From a strategy's name to an engine that serves by it."""

from __future__ import annotations

from tunebatch.engine.clock import Clock
from tunebatch.engine.engine import Engine, RequestSource, Watcher
from tunebatch.engine.knobs import NUM_DRAFTS
from tunebatch.engine.limits import NO_LIMITS, LatencyLimits
from tunebatch.engine.plan import Executor
from tunebatch.engine.speculation.acceptance import AlwaysDrafts, SyntheticAcceptance
from tunebatch.engine.speculation.depth import Auto, Fixed
from tunebatch.engine.speculation.ngram import NGram
from tunebatch.engine.speculation.speculator import Speculator
from tunebatch.engine.strategies import Strategy, StrategyError


def engine_for(
    strategy: Strategy,
    executor: Executor,
    source: RequestSource,
    clock: Clock,
    watcher: Watcher | None = None,
    limits: LatencyLimits = NO_LIMITS,
    acceptance: SyntheticAcceptance | None = None,
    overlap: bool | None = None,
) -> Engine:
    """An engine with the strategy's policy and features; good for one run.

    Args:
        limits: Of the SLO that the run is judged by.
        acceptance: Draws which drafts are accepted, where tokens mean nothing.
        overlap: See `Engine`.

    Raises:
        StrategyError: A feature that this executor cannot serve.
    """
    return Engine(
        executor,
        strategy.make_policy(limits),
        source,
        clock,
        watcher,
        prefix_caching="prefix" in strategy.features,
        speculator=_speculator(strategy, executor, acceptance),
        overlap=overlap,
    )


def _speculator(
    strategy: Strategy, executor: Executor, acceptance: SyntheticAcceptance | None
) -> Speculator | None:
    if strategy.drafter is None:
        return None
    lookup = NGram() if acceptance is None else AlwaysDrafts(NGram())
    drafter = lookup if strategy.drafter == "ngram" else executor.drafter
    if drafter is None:
        raise StrategyError(
            f"strategy {strategy.name} needs a draft model; name one with --draft, or draft with +ngram"
        )
    drafter.reset()
    num_drafts = int(dict(strategy.knobs)[NUM_DRAFTS.name])
    return Speculator(drafter, Fixed(num_drafts) if num_drafts else Auto(), acceptance)
