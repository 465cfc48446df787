"""A short dry run where only that is installed which a GPU machine has: run as a script, with a folder."""

from __future__ import annotations

import dataclasses
import json
import sys
from contextlib import nullcontext
from pathlib import Path

# As if they were not there: importing one fails, and so does looking for it.
MISSING = ("optuna", "pydantic", "scipy", "numba", "psutil", "pynvml", "hypothesis")
for name in MISSING:
    sys.modules[name] = None  # type: ignore[assignment] - Python's own way of saying so

import gpu  # noqa: E402 - what it imports must be missing by now
from on_gpu.setting import DRY  # noqa: E402

from tunebatch import bench  # noqa: E402 - for the same reason

# No figure counts, and a collection takes longer than a run.
bench._without_gc = nullcontext
# Of a part: however slow the machine is, all of it is measured.
gpu.DRY_S = 300.0

SHORT = dataclasses.replace(
    DRY,
    kernel_cases=2,
    longest_kernel_context=20,
    batches=(1, 2),
    contexts=(16, 10_000),
    prompts=(16,),
    at_context=16,
    at_prompt=16,
    ceilings_s=0.05,
    num_blocks=20,
    repeats=2,
    requests=2,
    offline_lengths=(2, 4),
    checked=("mixed", "continuous+prefix"),
    workloads=("rag",),
    strategy_requests=2,
    host_batches=(1,),
    host_tokens=3,
)

if __name__ == "__main__":
    code = gpu.main([*sys.argv[2:], "--dry", "--out", sys.argv[1]], SHORT)
    imported = [name for name in MISSING if sys.modules.get(name) is not None]
    Path(sys.argv[1], "imported.json").write_text(json.dumps(imported))
    sys.exit(code)
