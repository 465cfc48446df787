"""nvidia-ml-py as far as the package asks it, without a GPU; whatever it is told to refuse it refuses."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

QUERIES = (
    "nvmlDeviceGetName",
    "nvmlDeviceGetMemoryInfo",
    "nvmlDeviceGetUtilizationRates",
    "nvmlDeviceGetPowerUsage",
    "nvmlDeviceGetEnforcedPowerLimit",
    "nvmlDeviceGetTotalEnergyConsumption",
    "nvmlDeviceGetClockInfo",
    "nvmlDeviceGetMaxClockInfo",
    "nvmlDeviceGetCurrentClocksEventReasons",
    "nvmlDeviceGetTemperature",
    "nvmlDeviceGetComputeRunningProcesses",
    "nvmlDeviceGetMigMode",
    "nvmlDeviceIsMigDeviceHandle",
    "nvmlSystemGetDriverVersion",
    "nvmlSystemGetNVMLVersion",
)
NOT_SUPPORTED, NO_PERMISSION, DRIVER_NOT_LOADED, LIBRARY_NOT_FOUND, UNKNOWN = 3, 4, 9, 12, 999


class FakeError(Exception):
    """As the library's: the number says what happened."""

    def __init__(self, value: int) -> None:
        super().__init__(f"error {value}")
        self.value = value


class FakeNvml:
    """One GPU, whose figures are attributes, in NVML's units (mW, mJ, MHz, percent).

    Attributes:
        refuses: An error's number by the name of the function that gives it.
        opened: Calls of ``nvmlInit`` less those of ``nvmlShutdown``.
        asked: The names of all functions called, in order.
        mig: The GPU is cut; handle 7 is its first MIG device.
    """

    def __init__(self, **figures: Any) -> None:
        self.refuses: dict[str, int] = {}
        self.opened = 0
        self.asked: list[str] = []
        self.mig = False
        self.power_mw, self.limit_mw, self.energy_mj = 300_000, 700_000, 5_000_000
        self.busy, self.memory_busy = 90, 40
        self.sm_mhz, self.memory_mhz, self.reasons = 1980, 2619, 0
        self.used, self.total, self.celsius = 20 * 2**30, 80 * 2**30, 55
        self.pids = [4711]
        self.uuids = ["GPU-aa-bb"]
        for name, value in figures.items():
            setattr(self, name, value)

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("nvml"):
            self.asked.append(name)
            if name in self.refuses:
                error = self.refuses[name]

                def refuse(*_: Any) -> None:
                    raise FakeError(error)

                return refuse
        return super().__getattribute__(name)

    def nvmlInit(self) -> None:  # noqa: N802 - NVML's names
        self.opened += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.opened -= 1

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        if index:
            raise FakeError(2)
        return 1

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> int:  # noqa: N802
        if uuid not in self.uuids:
            raise FakeError(6)
        return 7 if uuid.startswith("MIG-") else 1

    def nvmlDeviceIsMigDeviceHandle(self, handle: int) -> int:  # noqa: N802
        return int(handle == 7)

    def nvmlDeviceGetMigMode(self, handle: int) -> list[int]:  # noqa: N802
        return [int(self.mig), int(self.mig)]

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: int, index: int) -> int:  # noqa: N802
        return 7

    def nvmlDeviceGetName(self, handle: int) -> str:  # noqa: N802
        return "NVIDIA Fake" if handle == 1 else "NVIDIA Fake MIG 1g.10gb"

    def nvmlSystemGetDriverVersion(self) -> bytes:  # noqa: N802
        return b"555.42"

    def nvmlSystemGetNVMLVersion(self) -> str:  # noqa: N802
        return "12.555"

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> SimpleNamespace:  # noqa: N802
        return SimpleNamespace(used=self.used, total=self.total)

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> SimpleNamespace:  # noqa: N802
        return SimpleNamespace(gpu=self.busy, memory=self.memory_busy)

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:  # noqa: N802
        return self.power_mw

    def nvmlDeviceGetEnforcedPowerLimit(self, handle: int) -> int:  # noqa: N802
        return self.limit_mw

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> int:  # noqa: N802
        return self.energy_mj

    def nvmlDeviceGetClockInfo(self, handle: int, kind: int) -> int:  # noqa: N802
        return {1: self.sm_mhz, 2: self.memory_mhz}[kind]

    def nvmlDeviceGetMaxClockInfo(self, handle: int, kind: int) -> int:  # noqa: N802
        return {1: 1980}[kind]

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle: int) -> int:  # noqa: N802
        return self.reasons

    def nvmlDeviceGetTemperature(self, handle: int, sensor: int) -> int:  # noqa: N802
        return {0: self.celsius}[sensor]

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> list[SimpleNamespace]:  # noqa: N802
        return [SimpleNamespace(pid=pid) for pid in self.pids]
