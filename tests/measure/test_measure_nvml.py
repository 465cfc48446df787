"""What the driver tells of a GPU, and that nothing it refuses is more than a figure that is missing."""

from __future__ import annotations

import sys

import pytest
from fake_nvml import (
    DRIVER_NOT_LOADED,
    LIBRARY_NOT_FOUND,
    NO_PERMISSION,
    NOT_SUPPORTED,
    QUERIES,
    UNKNOWN,
    FakeNvml,
)

from tunebatch.measure.telemetry import nvml
from tunebatch.measure.telemetry.clock_reasons import in_words, throttles
from tunebatch.measure.telemetry.nvml import Gpu, NvmlError, open_gpu

READINGS = {
    "name": ("nvmlDeviceGetName", "NVIDIA Fake"),
    "driver": ("nvmlSystemGetDriverVersion", "555.42"),
    "nvml_version": ("nvmlSystemGetNVMLVersion", "12.555"),
    "used_bytes": ("nvmlDeviceGetMemoryInfo", 20 * 2**30),
    "total_bytes": ("nvmlDeviceGetMemoryInfo", 80 * 2**30),
    "utilization": ("nvmlDeviceGetUtilizationRates", (0.9, 0.4)),
    "power_w": ("nvmlDeviceGetPowerUsage", 300.0),
    "power_limit_w": ("nvmlDeviceGetEnforcedPowerLimit", 700.0),
    "energy_j": ("nvmlDeviceGetTotalEnergyConsumption", 5000.0),
    "sm_clock_mhz": ("nvmlDeviceGetClockInfo", 1980.0),
    "memory_clock_mhz": ("nvmlDeviceGetClockInfo", 2619.0),
    "max_sm_clock_mhz": ("nvmlDeviceGetMaxClockInfo", 1980.0),
    "clock_reasons": ("nvmlDeviceGetCurrentClocksEventReasons", 0),
    "temperature_c": ("nvmlDeviceGetTemperature", 55.0),
    "process_ids": ("nvmlDeviceGetComputeRunningProcesses", frozenset({4711})),
}


@pytest.fixture(autouse=True)
def all_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def readings(gpu: Gpu) -> dict[str, object]:
    return {reading: getattr(gpu, reading)() for reading in READINGS}


def test_every_reading_in_units_of_its_own() -> None:
    assert readings(open_gpu(library=FakeNvml())) == {name: value for name, (_, value) in READINGS.items()}


@pytest.mark.parametrize("error", [NOT_SUPPORTED, NO_PERMISSION, UNKNOWN])
@pytest.mark.parametrize("query", QUERIES)
def test_a_query_that_is_refused_takes_away_its_figure_alone(query: str, error: int) -> None:
    library = FakeNvml()
    library.refuses[query] = error
    gpu = open_gpu(library=library)
    expected = {name: None if asked == query else value for name, (asked, value) in READINGS.items()}
    assert readings(gpu) == expected


def test_what_is_refused_for_good_is_not_asked_again_and_a_hiccup_is() -> None:
    for error, times in ((NOT_SUPPORTED, 1), (UNKNOWN, 3)):
        library = FakeNvml()
        library.refuses["nvmlDeviceGetPowerUsage"] = error
        gpu = open_gpu(library=library)
        assert [gpu.power_w() for _ in range(3)] == [None] * 3
        assert library.asked.count("nvmlDeviceGetPowerUsage") == times
        del library.refuses["nvmlDeviceGetPowerUsage"]
        assert gpu.power_w() == (None if times == 1 else 300.0)


def test_an_older_library_has_the_older_name_of_clock_reasons() -> None:
    library = FakeNvml(nvmlDeviceGetCurrentClocksThrottleReasons=lambda handle: 0x40)
    library.refuses["nvmlDeviceGetCurrentClocksEventReasons"] = 13
    assert open_gpu(library=library).clock_reasons() == 0x40


def test_the_gpu_is_found_as_cuda_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    library = FakeNvml(uuids=["GPU-aa-bb", "MIG-cc-dd"])
    for uuid in ("aa-bb", "GPU-aa-bb"):
        assert not open_gpu(uuid, library).is_slice
    for uuid in ("cc-dd", "MIG-cc-dd"):
        assert open_gpu(uuid, library).is_slice
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-cc-dd,1")
    assert open_gpu(library=library).is_slice
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,0")
    with pytest.raises(NvmlError, match="error 2"):
        open_gpu(library=library)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    with pytest.raises(NvmlError, match="hides every GPU") as hidden:
        open_gpu(library=library)
    assert "CUDA_VISIBLE_DEVICES" in hidden.value.mend
    assert open_gpu("aa-bb", library).name() == "NVIDIA Fake"


def test_of_a_mig_device_power_and_energy_are_not_its_own() -> None:
    library = FakeNvml(mig=True)
    library.refuses["nvmlDeviceGetUtilizationRates"] = 2
    gpu = open_gpu(library=library)
    assert gpu.is_slice and gpu.name() == "NVIDIA Fake MIG 1g.10gb" and gpu.total_bytes() == 80 * 2**30
    assert (gpu.power_w(), gpu.energy_j(), gpu.power_limit_w(), gpu.utilization()) == (None,) * 4
    assert not {"nvmlDeviceGetPowerUsage", "nvmlDeviceGetTotalEnergyConsumption"} & set(library.asked)


@pytest.mark.parametrize(
    ("error", "why", "mend"),
    [
        (LIBRARY_NOT_FOUND, "no library libnvidia-ml", "install NVIDIA's driver"),
        (DRIVER_NOT_LOADED, "not loaded", "modprobe"),
        (NO_PERMISSION, "no permission", "usermod"),
        (UNKNOWN, "error 999", "nvidia-smi"),
    ],
)
def test_why_nvml_cannot_be_used_comes_with_what_helps(error: int, why: str, mend: str) -> None:
    library = FakeNvml()
    library.refuses["nvmlInit"] = error
    with pytest.raises(NvmlError, match=why) as failed:
        open_gpu(library=library)
    assert mend in failed.value.mend and "\n" not in f"{failed.value}{failed.value.mend}"


def test_without_the_package_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(NvmlError, match="nvidia-ml-py is not installed") as failed:
        open_gpu()
    assert failed.value.mend.endswith("-m pip install nvidia-ml-py")


def test_what_was_opened_is_closed() -> None:
    library = FakeNvml()
    gpu = open_gpu(library=library)
    assert library.opened == 1
    gpu.close()
    assert library.opened == 0
    with pytest.raises(NvmlError):
        open_gpu("another", library)
    assert library.opened == 0
    library.refuses["nvmlShutdown"] = UNKNOWN
    open_gpu(library=library).close()


def test_clock_reasons_in_words() -> None:
    assert in_words(0) == ()
    assert in_words(0x1) == ("idle",)
    assert in_words(0x4 | 0x20 | 0x80) == ("power cap", "thermal slowdown", "power brake")
    assert in_words(0x8000 | 0x40) == ("hardware thermal slowdown", "reason 0x8000")
    slow = {word for bit in range(12) for word in in_words(1 << bit) if throttles(word)}
    assert {"thermal slowdown", "hardware slowdown", "power brake", "reason 0x800"} <= slow
    assert not slow & {"idle", "power cap", "clocks set by hand", "sync boost", "display clocks"}


def test_the_words_are_of_the_librarys_bits() -> None:
    pynvml = pytest.importorskip("pynvml")
    for name, bit in vars(pynvml).items():
        if name.startswith("nvmlClocksThrottleReason") and name not in (
            "nvmlClocksThrottleReasonAll",
            "nvmlClocksThrottleReasonNone",
        ):
            assert "reason" not in in_words(bit)[0], name
    for query in QUERIES:
        assert hasattr(pynvml, query)
    assert (nvml._SM_CLOCK, nvml._MEMORY_CLOCK) == (pynvml.NVML_CLOCK_SM, pynvml.NVML_CLOCK_MEM)
    assert pynvml.NVML_TEMPERATURE_GPU == nvml._CORE_TEMPERATURE
    names = ("INVALID_ARGUMENT", "NOT_SUPPORTED", "NO_PERMISSION", "FUNCTION_NOT_FOUND")
    assert tuple(getattr(pynvml, f"NVML_ERROR_{name}") for name in names) == nvml._FOR_GOOD
