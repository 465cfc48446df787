"""Makes the fake device importable from the tests of this folder, and what they suggest cheap."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def cheap_suggestions(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random points instead of the Gaussian process, of which each takes longer than a paper device's trial.

    What a sweep makes of suggestions does not depend on where they come from; tests of how good they are
    have the mark ``gaussian_process``.
    """
    if "gaussian_process" in request.keywords:
        return
    from tunebatch.tune import sweep
    from tunebatch.tune.journal import random_sampler

    monkeypatch.setattr(sweep, "sampler_of", lambda name, seed, *_: random_sampler(seed))
