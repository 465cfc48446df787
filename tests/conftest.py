"""Settings for all tests."""

from __future__ import annotations

import os
from pathlib import Path

# Tiny models gain nothing from threads, and spinning ones take the cores from whatever else runs.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Read when a kernel is defined. Without a GPU, and so without its driver, kernels are interpreted.
if not Path("/proc/driver/nvidia").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")
