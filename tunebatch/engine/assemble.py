"""From a strategy's name to an engine that serves by it."""

from __future__ import annotations

from tunebatch.engine.clock import Clock
from tunebatch.engine.engine import Engine, RequestSource, Watcher
from tunebatch.engine.plan import Executor
from tunebatch.engine.strategies import Strategy


def engine_for(
    strategy: Strategy,
    executor: Executor,
    source: RequestSource,
    clock: Clock,
    watcher: Watcher | None = None,
) -> Engine:
    """An engine with the strategy's policy and features; good for one run.

    Raises:
        StrategyError: A feature that this executor cannot serve.
    """
    return Engine(
        executor,
        strategy.make_policy(),
        source,
        clock,
        watcher,
        prefix_caching="prefix" in strategy.features,
    )
