"""Where the publishers' traces are: excerpts beside the tests, and whole ones wherever a variable says."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

EXCERPTS = Path(__file__).parent / "traces"
# Not TUNEBATCH_...: that would be a setting of a profile.
TRACES = Path(os.environ.get("PUBLISHED_TRACES", "none"))
whole = pytest.mark.skipif(
    not TRACES.is_dir(),
    reason="needs the longer traces that tests/workload/traces/README.md names, in a folder PUBLISHED_TRACES",
)
