"""The machine and the versions that a result was measured with. Loads no heavy library to find out."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib import metadata

import tunebatch
from tunebatch.measure.telemetry.cpu import usable_cores
from tunebatch.measure.telemetry.nvml import Gpu, NvmlError, open_gpu

_LIBRARIES = ("torch", "transformers", "numpy", "numba")


def environment(gpu: Gpu | None = None) -> dict[str, str | int | float | None]:
    """Facts that decide whether two results are comparable; None for what cannot be found out.

    The machine's name is left out: results are published.

    Args:
        gpu: The one that computes; by default the first that this process may use.
    """
    facts: dict[str, str | int | float | None] = {
        "tunebatch": tunebatch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu_model(),
        "cores": len(usable_cores()),
        "memory_bytes": _memory_bytes(),
        "load_average": _load_average(),
    }
    for library in _LIBRARIES:
        facts[library] = _version(library)
    return facts | _facts_of(gpu)


def _version(library: str) -> str | None:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return None


def _memory_bytes() -> int:
    try:
        import psutil
    except ModuleNotFoundError:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return int(psutil.virtual_memory().total)


def _load_average() -> float | None:
    """Runnable tasks, mean over the last minute."""
    try:
        return float(os.getloadavg()[0])
    except (OSError, AttributeError):
        return None


def _cpu_model() -> str | None:
    try:
        if sys.platform == "darwin":
            command = ["sysctl", "-n", "machdep.cpu.brand_string"]
            return subprocess.run(command, capture_output=True, text=True, timeout=5).stdout.strip() or None
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            for line in lines:
                name, _, value = line.partition(":")
                if name.strip() == "model name":
                    return value.strip()
    except (OSError, subprocess.SubprocessError):
        pass
    return platform.processor() or platform.machine() or None


def _facts_of(gpu: Gpu | None) -> dict[str, str | int | float | None]:
    """The GPU as the driver names it; all None without one."""
    opened = None
    if gpu is None:
        try:
            gpu = opened = open_gpu()
        except NvmlError:
            return {"gpu": None, "gpu_memory_bytes": None, "gpu_driver": None}
    facts: dict[str, str | int | float | None] = {
        "gpu": gpu.name(),
        "gpu_memory_bytes": gpu.total_bytes(),
        "gpu_driver": gpu.driver(),
    }
    if opened is not None:
        opened.close()
    return facts
