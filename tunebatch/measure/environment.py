"""The machine and the versions that a result was measured with. Loads no heavy library to find out."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib import metadata

import psutil

import tunebatch
from tunebatch.measure.cpu_telemetry import CpuTelemetry, CpuUse, usable_cores

__all__ = ["CpuTelemetry", "CpuUse", "environment"]

_LIBRARIES = ("torch", "transformers", "numpy", "numba")


def environment() -> dict[str, str | int | float | None]:
    """Facts that decide whether two results are comparable; None for what cannot be found out.

    The machine's name is left out: results are published.
    """
    facts: dict[str, str | int | float | None] = {
        "tunebatch": tunebatch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu_model(),
        "cores": len(usable_cores()),
        "memory_bytes": int(psutil.virtual_memory().total),
        "load_average": _load_average(),
    }
    for library in _LIBRARIES:
        facts[library] = _version(library)
    return facts | _gpu()


def _version(library: str) -> str | None:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return None


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


def _gpu() -> dict[str, str | int | float | None]:
    """The first GPU that this process may use, as the driver names it; all None without one."""
    facts: dict[str, str | int | float | None] = {"gpu": None, "gpu_memory_bytes": None, "gpu_driver": None}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    if visible in ("", "-1"):
        return facts
    try:
        import pynvml

        pynvml.nvmlInit()
    # No library, no driver, no permission, a broken driver: none of them stops a measurement.
    except Exception:
        return facts
    try:
        if visible.isdigit():
            handle = pynvml.nvmlDeviceGetHandleByIndex(int(visible))
        else:
            handle = pynvml.nvmlDeviceGetHandleByUUID(visible)
        facts["gpu"] = _text(pynvml.nvmlDeviceGetName(handle))
        facts["gpu_driver"] = _text(pynvml.nvmlSystemGetDriverVersion())
        facts["gpu_memory_bytes"] = int(pynvml.nvmlDeviceGetMemoryInfo(handle).total)
    except Exception:  # as above: what was found until here stays
        pass
    finally:
        pynvml.nvmlShutdown()
    return facts


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
