"""All kernels compile for a Hopper GPU, which the interpreter cannot promise: no GPU is needed for that."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton", reason="Triton is not installed: its compiler cannot be tested")

SHARED_BYTES = 227 * 2**10  # that a block may have on compute capability 9.0
LLAMA = {"dtype": "bfloat16", "heads": 32, "kv_heads": 8, "dim": 128, "block_size": 16}
SHAPES: list[dict[str, Any]] = [
    {
        "dtype": "bfloat16",
        "heads": 64,
        "kv_heads": 8,
        "dim": 64,
        "block_size": 16,
        "sinks": True,
        "window": 128,
    },
    {"dtype": "bfloat16", "heads": 16, "kv_heads": 8, "dim": 256, "block_size": 64, "softcap": 50.0},
    {"dtype": "bfloat16", "heads": 48, "kv_heads": 1, "dim": 96, "block_size": 32},
    {"dtype": "bfloat16", "heads": 16, "kv_heads": 16, "dim": 192, "value_dim": 128, "block_size": 128},
    {"dtype": "float16", "heads": 12, "kv_heads": 12, "dim": 80, "block_size": 256},
    {"dtype": "float32", "heads": 16, "kv_heads": 8, "dim": 128, "block_size": 16, "window": 4096},
    {"dtype": "float32", "heads": 14, "kv_heads": 2, "dim": 64, "block_size": 16, "sinks": True},
    {"dtype": "float32", "heads": 16, "kv_heads": 8, "dim": 256, "block_size": 16, "softcap": 50.0},
]


def compiled(shape: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    script = Path(__file__).parent / "execute_hopper.py"
    environ = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(folder)}
    done = subprocess.run(
        [sys.executable, str(script), json.dumps(shape)], env=environ, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def check(kernels: list[dict[str, Any]], shape: dict[str, Any]) -> None:
    of_attention = {"attend_kernel", "merge_kernel", "write_kernel"}
    launched = of_attention | {"rms_norm_kernel", "rotary_kernel", "gate_kernel"}
    assert {found["kernel"] for found in kernels} == launched
    exact = shape["dtype"] == "float32"
    for found in kernels:
        assert found["for_hopper"] and found["shared_bytes"] <= SHARED_BYTES
        assert found["stack_bytes"] <= 64, "registers spill"
        assert not found["after_warmup"], "compiled when a step came that warming up had not foreseen"
        if found["kernel"] == "attend_kernel":
            assert found["loads_ahead"]
            # In float32 tensor cores would round to tf32.
            assert found["tensor_cores"] == (not exact)


def test_kernels_compile_for_hopper(tmp_path: Path) -> None:
    check(compiled(LLAMA, tmp_path), LLAMA)


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"{shape['dtype']}-{shape['dim']}")
def test_kernels_of_all_sorts_compile_for_hopper(shape: dict[str, Any], tmp_path: Path) -> None:
    check(compiled(shape, tmp_path), shape)
