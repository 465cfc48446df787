"""``tunebatch doctor``: what this machine has, and the command that mends what it lacks."""

from __future__ import annotations

import importlib.util
import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from tunebatch.cli import options

_LIBRARIES = ("torch", "transformers", "numba", "optuna", "numpy", "scipy", "pydantic", "rich")


def doctor(json: options.Json = False) -> int:
    """Check the installation: libraries, memory, GPU, bundled model."""
    from tunebatch.cli import output

    checks = [*_machine(), *(_library(name) for name in _LIBRARIES), _cuda(), _bundled(), _results()]
    broken = any(check["state"] == "missing" for check in checks)
    if json:
        output.print_json({"schema": "tunebatch.doctor.v1", "checks": checks})
        return int(broken)
    for check in checks:
        mend = f"; mend it: {check['mend']}" if check["mend"] else ""
        print(f"{check['state']:<8} {check['what']}: {check['found']}{mend}")
    return int(broken)


def _check(what: str, found: str, mend: str = "", state: str = "") -> dict[str, str]:
    return {"state": state or ("missing" if mend else "ok"), "what": what, "found": found, "mend": mend}


def _machine() -> list[dict[str, str]]:
    from tunebatch.measure.environment import environment

    facts = environment()
    memory = facts.get("memory_bytes")
    old = sys.version_info < (3, 11)
    checks = [
        _check("python", platform.python_version(), "install Python 3.11 or newer" if old else ""),
        _check("processor", f"{facts.get('cpu')}, {facts.get('cores')} usable cores"),
    ]
    if isinstance(memory, int):
        checks.append(_check("memory", f"{memory / 2**30:.1f} GiB"))
    if facts.get("gpu"):
        checks.append(_check("GPU", f"{facts['gpu']}, driver {facts.get('gpu_driver')}"))
    load, cores = facts.get("load_average"), facts.get("cores")
    if isinstance(load, float) and isinstance(cores, int) and load > 0.5 * cores:
        checks.append(_check("load", f"{load:.1f} on {cores} cores; timings will be noisy", state="warning"))
    return checks


def _library(name: str) -> dict[str, str]:
    try:
        return _check(name, metadata.version(name))
    except metadata.PackageNotFoundError:
        return _check(name, "not installed", f"{Path(sys.executable).name} -m pip install {name}")


def _cuda() -> dict[str, str]:
    if importlib.util.find_spec("torch") is None:
        return _check("CUDA", "torch is missing", state="warning")
    try:
        import torch

        cuda: Any = torch.cuda
        if cuda.is_available():
            return _check("CUDA", f"{torch.version.cuda}, {cuda.get_device_name(0)}")
    except Exception as error:
        return _check("CUDA", f"torch fails: {' '.join(str(error).split())}", "reinstall torch")
    return _check("CUDA", "torch finds no device; strategies are measured on the CPU", state="none")


def _bundled() -> dict[str, str]:
    from tunebatch.models import bundled_corpus, bundled_target

    mend = f"{Path(sys.executable).name} -m pip install --force-reinstall --no-deps tunebatch"
    for path in (bundled_target() / "config.json", bundled_corpus()):
        if not path.is_file():
            return _check("bundled model", f"{path.name} is missing", mend)
    return _check("bundled model", "present")


def _results() -> dict[str, str]:
    folder = Path.cwd()
    if os.access(folder, os.W_OK):
        return _check("results", "this folder is writable")
    return _check("results", "this folder is not writable", state="warning", mend="use --out FOLDER")
