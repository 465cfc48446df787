"""One NVIDIA GPU, as its driver's library tells of it: NVML, through nvidia-ml-py."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from typing import Any

# NVML's numbers of errors; the classes that nvidia-ml-py makes of them are not there without it.
_INVALID_ARGUMENT, _NOT_SUPPORTED, _NO_PERMISSION, _FUNCTION_NOT_FOUND = 2, 3, 4, 13
_FOR_GOOD = (_INVALID_ARGUMENT, _NOT_SUPPORTED, _NO_PERMISSION, _FUNCTION_NOT_FOUND)
_SM_CLOCK, _MEMORY_CLOCK, _CORE_TEMPERATURE = 1, 2, 0
_SMI = "see what nvidia-smi says"
_MENDS = {
    _NO_PERMISSION: (
        "no permission to ask the driver",
        "sudo usermod -aG $(stat -c %G /dev/nvidia0) $USER, then log in again",
    ),
    9: ("the driver is not loaded", "sudo modprobe nvidia, or restart"),
    12: (
        "no library libnvidia-ml, so no NVIDIA driver",
        "install NVIDIA's driver; start a container with --gpus all",
    ),
    15: ("the GPU has fallen off the bus", "restart"),
    18: ("the driver was updated and the old one still runs", "restart"),
}


class NvmlError(RuntimeError):
    """NVML cannot be used; why, in one line, and in ``mend`` what helps."""

    def __init__(self, why: str, mend: str) -> None:
        super().__init__(why)
        self.mend = mend


class Gpu:
    """A GPU, or one of the devices that MIG cuts it into.

    Every reading is None where the driver refuses it. One that is refused for good (not supported, no
    permission) is not asked for again, so that it costs nothing. Each call leaves Python while it waits.

    Attributes:
        is_slice: A MIG device. Power and energy are the whole GPU's, so they are not asked for.
        refused: What the driver refused for good, by NVML's names.
    """

    def __init__(self, library: Any, handle: Any, is_slice: bool = False) -> None:
        self._library = library
        self._handle = handle
        self.is_slice = is_slice
        self.refused: set[str] = set()

    def close(self) -> None:
        """No reading after this."""
        with contextlib.suppress(Exception):  # there may be nothing left to close
            self._library.nvmlShutdown()

    def name(self) -> str | None:
        found = self._ask("nvmlDeviceGetName")
        return None if found is None else _text(found)

    def driver(self) -> str | None:
        return self._version("nvmlSystemGetDriverVersion")

    def nvml_version(self) -> str | None:
        return self._version("nvmlSystemGetNVMLVersion")

    def used_bytes(self) -> int | None:
        """Memory in use, by whomever."""
        found = self._ask("nvmlDeviceGetMemoryInfo")
        return None if found is None else int(found.used)

    def total_bytes(self) -> int | None:
        found = self._ask("nvmlDeviceGetMemoryInfo")
        return None if found is None else int(found.total)

    def utilization(self) -> tuple[float, float] | None:
        """Shares of the driver's last sampling period (up to a second) in which a kernel ran on at least one
        SM, and in which memory was read or written."""
        found = self._ask("nvmlDeviceGetUtilizationRates")
        return None if found is None else (found.gpu / 100.0, found.memory / 100.0)

    def power_w(self) -> float | None:
        return self._thousandths("nvmlDeviceGetPowerUsage")

    def power_limit_w(self) -> float | None:
        return self._thousandths("nvmlDeviceGetEnforcedPowerLimit")

    def energy_j(self) -> float | None:
        """Since the driver was loaded; from Volta on."""
        return self._thousandths("nvmlDeviceGetTotalEnergyConsumption")

    def sm_clock_mhz(self) -> float | None:
        return _number(self._ask("nvmlDeviceGetClockInfo", _SM_CLOCK))

    def memory_clock_mhz(self) -> float | None:
        return _number(self._ask("nvmlDeviceGetClockInfo", _MEMORY_CLOCK))

    def max_sm_clock_mhz(self) -> float | None:
        return _number(self._ask("nvmlDeviceGetMaxClockInfo", _SM_CLOCK))

    def clock_reasons(self) -> int | None:
        """Why clocks are not higher, as bits; see ``clock_reasons``. Older drivers know the older name."""
        found = self._ask("nvmlDeviceGetCurrentClocksEventReasons")
        if found is None:
            found = self._ask("nvmlDeviceGetCurrentClocksThrottleReasons")
        return None if found is None else int(found)

    def temperature_c(self) -> float | None:
        return _number(self._ask("nvmlDeviceGetTemperature", _CORE_TEMPERATURE))

    def process_ids(self) -> frozenset[int] | None:
        """Of all that compute here, as the host numbers them: inside a container they are other numbers."""
        found = self._ask("nvmlDeviceGetComputeRunningProcesses")
        return None if found is None else frozenset(int(process.pid) for process in found)

    def _thousandths(self, query: str) -> float | None:
        found = None if self.is_slice else self._ask(query)
        return None if found is None else float(found) / 1e3

    def _version(self, query: str) -> str | None:
        try:
            return _text(getattr(self._library, query)())
        except Exception:  # as in _ask
            return None

    def _ask(self, query: str, *arguments: int) -> Any:
        if query in self.refused:
            return None
        try:
            return getattr(self._library, query)(self._handle, *arguments)
        # Whatever the library raises, a figure that is missing never stops a measurement.
        except Exception as error:
            if isinstance(error, AttributeError) or getattr(error, "value", None) in _FOR_GOOD:
                self.refused.add(query)
            return None


def open_gpu(uuid: str | None = None, library: Any = None) -> Gpu:
    """The GPU with this UUID, or else the first that this process may use.

    Args:
        uuid: As CUDA tells it: with or without the ``GPU-`` or ``MIG-`` in front. NVML counts GPUs in
            another order than CUDA, and does not know which are hidden.
        library: Taken for nvidia-ml-py.

    Raises:
        NvmlError: No library, no driver, no permission, or no such GPU.
    """
    if library is None:
        try:
            import pynvml
        except ImportError:
            install = f"{sys.executable} -m pip install nvidia-ml-py"
            raise NvmlError("nvidia-ml-py is not installed", install) from None
        library = pynvml
    _told(library.nvmlInit)
    try:
        return _opened(library, uuid)
    except NvmlError:
        Gpu(library, None).close()
        raise


def _opened(library: Any, uuid: str | None) -> Gpu:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    if uuid is not None:
        handle = _by_uuid(library, uuid)
    elif visible in ("", "-1"):
        raise NvmlError("CUDA_VISIBLE_DEVICES hides every GPU", "unset CUDA_VISIBLE_DEVICES")
    elif visible.isdigit():
        handle = _told(lambda: library.nvmlDeviceGetHandleByIndex(int(visible)))
    else:
        handle = _by_uuid(library, visible)
    whole = Gpu(library, handle)
    if whole._ask("nvmlDeviceIsMigDeviceHandle"):
        return Gpu(library, handle, is_slice=True)
    mode = whole._ask("nvmlDeviceGetMigMode")
    if mode is None or not mode[0]:
        return whole
    # CUDA takes the first of a GPU's MIG devices where none is named.
    return Gpu(library, _told(lambda: library.nvmlDeviceGetMigDeviceHandleByIndex(handle, 0)), is_slice=True)


def _by_uuid(library: Any, uuid: str) -> Any:
    named = [uuid] if uuid.startswith(("GPU-", "MIG-")) else [f"GPU-{uuid}", f"MIG-{uuid}"]
    for name in named[:-1]:
        try:
            return library.nvmlDeviceGetHandleByUUID(name)
        except Exception:  # the next name may be the right one
            continue
    return _told(lambda: library.nvmlDeviceGetHandleByUUID(named[-1]))


def _told(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except Exception as error:
        text = " ".join(str(error).split()) or type(error).__name__
        raise NvmlError(*_MENDS.get(getattr(error, "value", 0), (text, _SMI))) from error


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _number(value: Any) -> float | None:
    return None if value is None else float(value)
