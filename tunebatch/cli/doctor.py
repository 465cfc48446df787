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
from tunebatch.cli.checks import Check, check, pip
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
    ceilings: Annotated[
        bool,
        typer.Option("--ceilings", help="Measure how fast the device multiplies matrices and copies."),
    ] = False,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", metavar="MODEL", help="Whether this model fits.", show_default=False),
    ] = None,
    json: options.Json = False,
) -> int:
    """Say what this machine has (device, memory, versions), what is missing, and how to mend it."""
    from tunebatch.cli import check_clock as clocks
    from tunebatch.cli import output
    from tunebatch.cli.doctor_gpu import ceiling_checks

    if check_clock:
        found = clocks.check_clock()
        if json:
            output.print_json({"schema": "tunebatch.clock.v1", **found})
            return OK if found["agree"] else ENVIRONMENT
        return clocks.print_check(found)
    checks = [*_machine(), *_device(), *_libraries(), _bundled(), _results()]
    if model is not None and importlib.util.find_spec("torch") is not None:
        checks.append(_model(model))
    if ceilings and importlib.util.find_spec("torch") is not None:
        checks += ceiling_checks()
    broken = any(one["state"] == "missing" for one in checks)
    if json:
        output.print_json({"schema": "tunebatch.doctor.v1", "checks": checks})
    else:
        width = max(len(one["what"]) for one in checks)
        for one in checks:
            print(f"{one['state']:<7}  {one['what']:<{width}}  {one['found']}")
            if one["mend"]:
                print(f"{'':<7}  {'':<{width}}  mend it: {one['mend']}")
        print("something is missing: see above" if broken else "ready: tunebatch sweep")
    return ENVIRONMENT if broken else OK


def _machine() -> list[Check]:
    old = sys.version_info < (3, 11)
    checks = [
        check("Python", platform.python_version(), "install Python 3.11 or newer" if old else ""),
    ]
    try:
        import psutil

        from tunebatch.measure.environment import environment
    except ImportError:  # told among the libraries
        return checks
    facts, memory = environment(), psutil.virtual_memory()
    load, cores = facts.get("load_average"), facts.get("cores")
    checks += [
        check("processor", f"{facts.get('cpu')}, {cores} usable cores"),
        check("memory", f"{memory.total / 2**30:.1f} GiB, {memory.available / 2**30:.1f} GiB available"),
    ]
    if isinstance(load, float) and isinstance(cores, int) and load > 0.5 * cores:
        checks.append(check("load", f"{load:.1f} on {cores} cores: timings will be noisy", state="warning"))
    return checks


def _device() -> list[Check]:
    """What the strategies will be measured on, and why not on a GPU that is there."""
    from tunebatch.cli.doctor_gpu import backend_checks, nvml_checks
    from tunebatch.cli.instruments import open_gpu_of
    from tunebatch.measure.telemetry.nvml import open_gpu

    if importlib.util.find_spec("torch") is None:
        return [check("device", "not known without torch", state="warning")]
    try:
        import torch

        cuda: Any = torch.cuda
        if cuda.is_available():
            free, total = cuda.mem_get_info()
            room = f"{total / 2**30:.1f} GiB, {free / 2**30:.1f} GiB free"
            name = f"cuda: {cuda.get_device_name(0)}, {room}, CUDA {torch.version.cuda}"
            told = nvml_checks(lambda: open_gpu_of("cuda"), has_gpu=True, on_cuda=True)
            optional = backend_checks(cuda.get_device_capability())
            return [check("device", name), _attention(gpu=True), *optional, *told]
        built_for = torch.version.cuda
    except Exception as error:
        why = " ".join(str(error).split())
        return [check("device", f"torch fails: {why}", pip("--force-reinstall torch"))]
    idle = _idle_gpu(built_for)
    return [
        check("device", "cpu: torch finds no GPU"),
        _attention(gpu=False),
        *idle,
        *nvml_checks(open_gpu, has_gpu=bool(idle), on_cuda=False),
    ]


def _attention(gpu: bool) -> Check:
    """The kernels that models are served with unless a backend is asked for."""
    if not gpu:
        return check("attention", "compiled, for CPUs")
    try:
        return check("attention", f"triton {metadata.version('triton')}")
    except metadata.PackageNotFoundError:
        return check(
            "attention", "reference, which is slow: Triton is not installed", pip("triton"), "warning"
        )


def _model(name: str) -> Check:
    """Whether the model fits, from its config alone."""
    import torch

    from tunebatch.cli.plan_models import model_config
    from tunebatch.execute.torch.room import room_bytes
    from tunebatch.measure.shape_room import dtype_of, gib, need, why_too_large
    from tunebatch.models.architecture import architecture
    from tunebatch.profile_sections import DeviceSection

    found = model_config(name)
    sizes, device = architecture(found.config), "cuda" if torch.cuda.is_available() else "cpu"
    dtype = dtype_of(sizes, "auto", device)
    room = room_bytes(device, DeviceSection().utilization)
    weights = "" if found.has_weights else " (random weights)"
    why = why_too_large([(found.name + weights, sizes, dtype)], room)
    if why is not None:
        return check("model", why, state="warning")
    needed = gib(need(sizes, dtype).total_bytes)
    return check("model", f"{found.name}{weights} in {dtype}: {needed} needed (predicted), {gib(room)} free")


def _idle_gpu(built_for: str | None) -> list[Check]:
    """An NVIDIA GPU that torch cannot use: no driver, a torch built for CPUs, or a driver too old."""
    gpu, driver = _driver()
    if gpu is None and not nvidia_on_the_bus():
        return []
    if gpu is None:
        return [
            check(
                "GPU",
                "an NVIDIA GPU, but no driver answers",
                "install NVIDIA's driver (sudo ubuntu-drivers install, or your system's way), then restart",
            )
        ]
    if built_for is None:
        mend = pip("--force-reinstall torch, from an index whose build of torch has CUDA")
        return [check("GPU", f"{gpu}, driver {driver}, but this torch was built without CUDA", mend)]
    mend = f"update NVIDIA's driver to one for CUDA {built_for}; nvidia-smi tells what it supports"
    return [check("GPU", f"{gpu}, driver {driver}, which torch for CUDA {built_for} cannot use", mend)]


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


def _libraries() -> list[Check]:
    """Those that the package says it needs, with their least versions."""
    try:
        asked = metadata.requires("tunebatch") or []
    except metadata.PackageNotFoundError:
        return [check("tunebatch", "not installed, only on the path", pip("--editable ."), "warning")]
    needed = [_REQUIREMENT.match(line) for line in asked if "extra ==" not in line]
    return [
        check("tunebatch", metadata.version("tunebatch")),
        *(_library(found[1], found[2]) for found in needed if found is not None),
    ]


def _library(name: str, least: str) -> Check:
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return check(name, f"not installed; {least} or newer is needed", pip(f"'{name}>={least}'"))
    if _numbers(version) < _numbers(least):
        return check(name, f"{version}; {least} or newer is needed", pip(f"'{name}>={least}'"))
    return check(name, version)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.split("+")[0])[:3])


def _bundled() -> Check:
    from tunebatch.models import bundled_corpus, bundled_target

    for path in (bundled_target() / "config.json", bundled_target() / "model.safetensors", bundled_corpus()):
        if not path.is_file():
            return check("bundled model", f"{path.name} is missing", pip("--force-reinstall tunebatch"))
    return check("bundled model", "present")


def _results() -> Check:
    folder = Path.cwd()
    if not os.access(folder, os.W_OK):
        return check("results", "this folder is not writable", "give --out FOLDER", "warning")
    free = shutil.disk_usage(folder).free
    if free < _ROOM_BYTES:
        return check("results", f"{free / 2**20:.0f} MiB free here", "free some space", "warning")
    return check("results", f"this folder is writable, {free / 2**30:.0f} GiB free")
