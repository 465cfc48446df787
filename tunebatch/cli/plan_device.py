"""The device that ``tunebatch plan`` plans for: this machine's, a published GPU, or numbers."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tunebatch.cli.errors import CliError

if TYPE_CHECKING:
    from tunebatch.measure.decode_balance import Peaks
    from tunebatch.measure.gpus import Gpu
    from tunebatch.measure.memory_plan import Device

_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", re.IGNORECASE)
_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


@dataclass(frozen=True, slots=True)
class AskedDevice:
    """The flags, as written.

    Attributes:
        device: ``auto``, ``cpu`` or ``cuda``: which of this machine's is meant.
        bandwidth_gb_per_s: With ``tflops`` for a device whose peaks are not in the table, or instead of them.
    """

    memory: str | None = None
    gpu: str | None = None
    utilization: float = 0.9
    tflops: float | None = None
    bandwidth_gb_per_s: float | None = None
    device: str | None = None

    @property
    def of_this_machine(self) -> bool:
        return self.memory is None and self.gpu is None


def planned_device(asked: AskedDevice) -> tuple[Device, bool]:
    """The device, and whether it is this machine's CPU.

    Raises:
        CliError: An unknown GPU, an impossible number, or flags that contradict each other.
    """
    import psutil

    from tunebatch.measure.memory_plan import Device

    if not 0.0 < asked.utilization <= 1.0:
        raise CliError(f"--utilization {asked.utilization:g}: must be above 0 and at most 1, such as 0.9")
    for flag, value in (("--tflops", asked.tflops), ("--bandwidth", asked.bandwidth_gb_per_s)):
        if value is not None and not 0.0 < value < float("inf"):
            raise CliError(f"{flag} {value:g}: must be above 0")
    if not asked.of_this_machine and asked.device is not None:
        raise CliError("--device is of this machine; leave it out, or --gpu and --memory")
    gpu = None if asked.gpu is None else _published(asked.gpu)
    memory = None if asked.memory is None else parse_bytes(asked.memory)
    name, on_cpu = "", False
    if asked.of_this_machine:
        name, memory, gpu, on_cpu = _this_machine(asked.device or "auto")
    elif gpu is not None:
        name, memory = gpu.name, memory or gpu.memory_bytes
    assert memory is not None
    peaks_16, peaks_32 = (_peaks(asked, gpu, wide) for wide in (False, True))
    free = psutil.virtual_memory().available if on_cpu else None
    return Device(name or "a device", memory, asked.utilization, peaks_16, peaks_32, free), on_cpu


def parse_bytes(text: str, flag: str = "--memory") -> int:
    """Bytes of ``80GiB``, ``24 GB`` or ``512MiB``.

    Raises:
        CliError: No number, no or an unknown unit, or nothing.
    """
    found = _SIZE.fullmatch(text)
    if found is None:
        raise CliError(f"{flag} {text!r}: not a size; write it like 80GiB")
    number, unit = found.groups()
    units = {known.lower(): size for known, size in _UNITS.items()}
    if unit.lower() not in units:
        what = f"the unknown unit {unit!r}" if unit else "no unit"
        raise CliError(f"{flag} {text!r} has {what}; did you mean {number}GiB? (one of {', '.join(_UNITS)})")
    size = int(float(number) * units[unit.lower()])
    if not 1 <= size <= 2**60:
        raise CliError(f"{flag} {text!r}: no memory is that size; write it like 80GiB")
    return size


def _published(name: str) -> Gpu:
    from tunebatch.measure.gpus import GPUS
    from tunebatch.profile import nearest

    key = re.sub(r"[\s_]+", "-", name.strip().lower())
    if key not in GPUS:
        raise CliError(
            f"--gpu {name!r}: not in the table{nearest(key, GPUS)}; "
            "for any other give --memory, --tflops and --bandwidth"
        )
    return GPUS[key]


def _this_machine(device: str) -> tuple[str, int, Gpu | None, bool]:
    from tunebatch.measure.environment import environment
    from tunebatch.measure.gpus import gpu_of_driver

    if device not in ("auto", "cpu", "cuda"):
        raise CliError(f"unknown device {device!r}; one of auto, cpu, cuda")
    facts = environment()
    name, memory = facts["gpu"], facts["gpu_memory_bytes"]
    if device != "cpu" and name is not None and memory is not None:
        return f"this machine's {name}", int(memory), gpu_of_driver(str(name)), False
    if device == "cuda":
        raise CliError("--device cuda: no driver names a GPU here; plan for one with --gpu or --memory")
    return "this machine's CPU", int(facts["memory_bytes"] or 0), None, True


def _peaks(asked: AskedDevice, gpu: Gpu | None, wide: bool) -> Peaks | None:
    """In float32 (``wide``) or 16 bits; what the user gives counts for both."""
    from tunebatch.measure.decode_balance import Peaks

    tflops, bandwidth = asked.tflops, asked.bandwidth_gb_per_s
    if gpu is None:
        if tflops is None and bandwidth is None:
            return None
        if tflops is None or bandwidth is None:
            missing = "--tflops" if tflops is None else "--bandwidth"
            raise CliError(f"--tflops and --bandwidth are needed together; give {missing} too, or --gpu")
        return Peaks(tflops * 1e12, bandwidth * 1e9, "as given")
    published = f"published peak, not measured: {gpu.source}"
    source = published if tflops is None and bandwidth is None else "in part as given"
    return Peaks(
        (tflops or (gpu.tflops_32 if wide else gpu.tflops_16)) * 1e12,
        (bandwidth or gpu.bandwidth_gb_per_s) * 1e9,
        "as given" if tflops and bandwidth else source,
    )
