"""Settings for all tests."""

from __future__ import annotations

import os

# Tiny models gain nothing from threads, and spinning ones take the cores from whatever else runs.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
