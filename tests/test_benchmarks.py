"""What a benchmark leaves behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"

# Neither models nor peers are loaded: only what happens around a case matters.
CODE = """
import os, signal, sys, tempfile, time
from unittest.mock import MagicMock

sys.path.insert(0, sys.argv.pop(1))
for name in ("transformers", "peers.generate", "peers.generate_batch", "peers.ours", "peers.vllm_cpu",
             "peers.work"):
    sys.modules[name] = MagicMock()
sys.modules["peers.vllm_cpu"].NoVllmError = OSError
sys.modules["peers.generate_batch"].NoContinuousBatchingError = OSError
sys.modules["peers.work"].save = lambda *_: (1, 1)
import engine_cpu

def take_turns(*_):
    print(len(os.listdir(tempfile.gettempdir())), flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(600)

engine_cpu._take_turns = take_turns
sys.exit(engine_cpu.main())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="sends a POSIX signal")
def test_a_benchmark_that_is_told_to_end_takes_its_models_away(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(BENCHMARKS)],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 128 + 15, done.stderr
    assert done.stdout.splitlines()[-1] == "1"
    assert list(tmp_path.iterdir()) == []
