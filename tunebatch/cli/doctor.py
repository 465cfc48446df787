"""``tunebatch doctor``: what this machine has, and the command that mends what it lacks."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import sys
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer

from tunebatch.cli import options
from tunebatch.cli.errors import ENVIRONMENT, OK

_REQUIREMENT = re.compile(r"([A-Za-z0-9_.-]+)[^;]*?>=\s*([0-9.]+)")
_NVIDIA, _DISPLAY = "0x10de", "0x03"  # of the PCI bus: a vendor, and the class of graphics and 3D devices
_ROOM_BYTES = 2**30  # for results and compiled kernels


def doctor(
    check_clock: Annotated[
        bool,
        typer.Option(
            "--check-clock", help="Compare runs that skip idle time with runs in real time; 90 seconds."
        ),
    ] = False,
    json: options.Json = False,
) -> int:
    """Say what this machine has (device, memory, versions), what is missing, and how to mend it."""
    from tunebatch.cli import check_clock as clocks
    from tunebatch.cli import output

    if check_clock:
        found = clocks.check_clock()
        if json:
            output.print_json({"schema": "tunebatch.clock.v1", **found})
            return OK if found["agree"] else ENVIRONMENT
        return clocks.print_check(found)
    checks = [*_machine(), *_device(), *_libraries(), _bundled(), _results()]
    broken = any(check["state"] == "missing" for check in checks)
    if json:
        output.print_json({"schema": "tunebatch.doctor.v1", "checks": checks})
    else:
        width = max(len(check["what"]) for check in checks)
        for check in checks:
            print(f"{check['state']:<7}  {check['what']:<{width}}  {check['found']}")
            if check["mend"]:
                print(f"{'':<7}  {'':<{width}}  mend it: {check['mend']}")
        print("something is missing: see above" if broken else "ready: tunebatch sweep")
    return ENVIRONMENT if broken else OK


def _check(what: str, found: str, mend: str = "", state: str = "") -> dict[str, str]:
    return {"state": state or ("missing" if mend else "ok"), "what": what, "found": found, "mend": mend}


def _pip(arguments: str) -> str:
    return f"{sys.executable} -m pip install {arguments}"


def _machine() -> list[dict[str, str]]:
    old = sys.version_info < (3, 11)
    checks = [
        _check("Python", platform.python_version(), "install Python 3.11 or newer" if old else ""),
    ]
    try:
        import psutil

        from tunebatch.measure.environment import environment
    except ImportError:  # told among the libraries
        return checks
    facts, memory = environment(), psutil.virtual_memory()
    load, cores = facts.get("load_average"), facts.get("cores")
    checks += [
        _check("processor", f"{facts.get('cpu')}, {cores} usable cores"),
        _check("memory", f"{memory.total / 2**30:.1f} GiB, {memory.available / 2**30:.1f} GiB available"),
    ]
    if isinstance(load, float) and isinstance(cores, int) and load > 0.5 * cores:
        checks.append(_check("load", f"{load:.1f} on {cores} cores: timings will be noisy", state="warning"))
    return checks


def _device() -> list[dict[str, str]]:
    """What the strategies will be measured on, and why not on a GPU that is there."""
    if importlib.util.find_spec("torch") is None:
        return [_check("device", "not known without torch", state="warning")]
    try:
        import torch

        cuda: Any = torch.cuda
        if cuda.is_available():
            free, total = cuda.mem_get_info()
            room = f"{total / 2**30:.1f} GiB, {free / 2**30:.1f} GiB free"
            name = f"cuda: {cuda.get_device_name(0)}, {room}, CUDA {torch.version.cuda}"
            return [_check("device", name), _attention(gpu=True)]
        built_for = torch.version.cuda
    except Exception as error:
        why = " ".join(str(error).split())
        return [_check("device", f"torch fails: {why}", _pip("--force-reinstall torch"))]
    return [_check("device", "cpu: torch finds no GPU"), _attention(gpu=False), *_idle_gpu(built_for)]


def _attention(gpu: bool) -> dict[str, str]:
    """The kernels that models are served with unless a backend is asked for."""
    if not gpu:
        return _check("attention", "compiled, for CPUs")
    try:
        return _check("attention", f"triton {metadata.version('triton')}")
    except metadata.PackageNotFoundError:
        return _check(
            "attention", "reference, which is slow: Triton is not installed", _pip("triton"), "warning"
        )


def _idle_gpu(built_for: str | None) -> list[dict[str, str]]:
    """An NVIDIA GPU that torch cannot use: no driver, a torch built for CPUs, or a driver too old."""
    gpu, driver = _driver()
    if gpu is None and not nvidia_on_the_bus():
        return []
    if gpu is None:
        return [
            _check(
                "GPU",
                "an NVIDIA GPU, but no driver answers",
                "install NVIDIA's driver (sudo ubuntu-drivers install, or your system's way), then restart",
            )
        ]
    if built_for is None:
        mend = _pip("--force-reinstall torch, from an index whose build of torch has CUDA")
        return [_check("GPU", f"{gpu}, driver {driver}, but this torch was built without CUDA", mend)]
    mend = f"update NVIDIA's driver to one for CUDA {built_for}; nvidia-smi tells what it supports"
    return [_check("GPU", f"{gpu}, driver {driver}, which torch for CUDA {built_for} cannot use", mend)]


def _driver() -> tuple[str | None, str | None]:
    """The GPU's and the driver's names, from the driver."""
    try:
        from tunebatch.measure.environment import environment
    except ImportError:
        return None, None
    facts = environment()
    gpu, driver = facts.get("gpu"), facts.get("gpu_driver")
    return (None, None) if gpu is None else (str(gpu), str(driver))


def nvidia_on_the_bus(devices: Path = Path("/sys/bus/pci/devices")) -> bool:
    """Linux lists the devices of the PCI bus, whatever drivers there are."""
    for device in devices.glob("*"):
        try:
            vendor, kind = (device / "vendor").read_text().strip(), (device / "class").read_text().strip()
        except OSError:
            continue
        if vendor == _NVIDIA and kind.startswith(_DISPLAY):
            return True
    return False


def _libraries() -> list[dict[str, str]]:
    """Those that the package says it needs, with their least versions."""
    try:
        asked = metadata.requires("tunebatch") or []
    except metadata.PackageNotFoundError:
        return [_check("tunebatch", "not installed, only on the path", _pip("--editable ."), "warning")]
    needed = [_REQUIREMENT.match(line) for line in asked if "extra ==" not in line]
    return [
        _check("tunebatch", metadata.version("tunebatch")),
        *(_library(found[1], found[2]) for found in needed if found is not None),
    ]


def _library(name: str, least: str) -> dict[str, str]:
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return _check(name, f"not installed; {least} or newer is needed", _pip(f"'{name}>={least}'"))
    if _numbers(version) < _numbers(least):
        return _check(name, f"{version}; {least} or newer is needed", _pip(f"'{name}>={least}'"))
    return _check(name, version)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.split("+")[0])[:3])


def _bundled() -> dict[str, str]:
    from tunebatch.models import bundled_corpus, bundled_target

    for path in (bundled_target() / "config.json", bundled_target() / "model.safetensors", bundled_corpus()):
        if not path.is_file():
            return _check("bundled model", f"{path.name} is missing", _pip("--force-reinstall tunebatch"))
    return _check("bundled model", "present")


def _results() -> dict[str, str]:
    folder = Path.cwd()
    if not os.access(folder, os.W_OK):
        return _check("results", "this folder is not writable", "give --out FOLDER", "warning")
    free = shutil.disk_usage(folder).free
    if free < _ROOM_BYTES:
        return _check("results", f"{free / 2**20:.0f} MiB free here", "free some space", "warning")
    return _check("results", f"this folder is writable, {free / 2**30:.0f} GiB free")
