"""What samples of a GPU add up to, who disturbed it, and what the sampling itself costs."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import pytest
from fake_nvml import NOT_SUPPORTED, QUERIES, FakeNvml

from tunebatch.measure.telemetry import cpu
from tunebatch.measure.telemetry import gpu as module
from tunebatch.measure.telemetry.cautions import cpu_cautions, gpu_cautions
from tunebatch.measure.telemetry.cpu import CpuUse
from tunebatch.measure.telemetry.energy import EnergyMeter
from tunebatch.measure.telemetry.gpu import GpuTelemetry, GpuUse, Tally
from tunebatch.measure.telemetry.nvml import Gpu, open_gpu


def sampled(
    library: FakeNvml, count: int = 31, change: Callable[[int], None] = lambda i: None, period_s: float = 0.1
) -> GpuUse:
    """After so many samples; ``change`` sets the figures before each."""
    tally = Tally(open_gpu(library=library))
    for i in range(count):
        change(i)
        tally.sample(i * period_s, last=i == count - 1)
    use = tally.use()
    assert use is not None
    return use


def test_three_seconds_by_hand() -> None:
    library = FakeNvml()

    def change(i: int) -> None:
        library.energy_mj += 35_000 if i else 0
        library.busy = 0 if i < 10 else 80 if i % 2 else 90  # in the first second it is of before
        library.power_mw = 400_000 if i == 7 else 300_000
        library.used = (20 + (i == 4)) * 2**30
        library.celsius = 50 + i

    use = sampled(library, change=change)
    assert use.wall_s == pytest.approx(3.0) and use.num_samples == 31
    assert use.period_s == pytest.approx(0.1)
    assert use.sm_utilization == pytest.approx((11 * 0.9 + 10 * 0.8) / 21)
    assert use.memory_utilization == pytest.approx(0.4)
    assert (use.energy_j, use.energy_source) == (pytest.approx(30 * 35.0), "counter")
    assert use.mean_power_w == pytest.approx(350.0) and use.peak_power_w == 400.0
    assert use.power_limit_w == 700.0
    assert use.peak_memory_bytes == 21 * 2**30 and use.peak_temperature_c == 80.0
    assert (use.foreign_processes, use.clock_reasons) == (0, {})
    assert gpu_cautions(use) == ()


def test_without_a_counter_power_is_integrated() -> None:
    library = FakeNvml()
    library.refuses["nvmlDeviceGetTotalEnergyConsumption"] = NOT_SUPPORTED

    def change(i: int) -> None:
        library.power_mw = 100_000 + 10_000 * i

    use = sampled(library, 11, change, period_s=0.5)
    assert use.energy_source == "power"
    assert use.energy_j == pytest.approx(5.0 * (100 + 200) / 2)
    assert use.mean_power_w == pytest.approx(150.0)


def test_energy_across_readings_that_are_missing() -> None:
    meter = EnergyMeter()
    for at_s, power_w in ((0.0, 100.0), (1.0, None), (2.0, 300.0)):
        meter.add(at_s, None, power_w)
    assert meter.energy_j() == (400.0, "power")
    meter.add(3.0, 50.0, None)
    assert meter.energy_j() == (400.0, "power")  # a counter that was read once
    meter.add(4.0, 90.0, None)
    assert meter.energy_j() == (40.0, "counter")
    meter.add(5.0, 10.0, 300.0)  # it was set back
    assert meter.energy_j() == (400.0 + 900.0, "power")
    assert EnergyMeter().energy_j() is None


def test_a_span_too_short_for_the_drivers_own_windows_tells_neither_energy_nor_utilization() -> None:
    use = sampled(FakeNvml(), 10)
    assert (use.energy_j, use.energy_source, use.mean_power_w, use.sm_utilization) == (None,) * 4
    assert use.mean_sm_clock_mhz == 1980.0 and use.foreign_processes == 0


TOLD_BY = {
    "nvmlDeviceGetUtilizationRates": {"sm_utilization", "memory_utilization"},
    "nvmlDeviceGetPowerUsage": {"peak_power_w"},
    "nvmlDeviceGetEnforcedPowerLimit": {"power_limit_w"},
    "nvmlDeviceGetTotalEnergyConsumption": set(),  # power stands in
    "nvmlDeviceGetClockInfo": {
        "mean_sm_clock_mhz",
        "min_sm_clock_mhz",
        "max_sm_clock_mhz",
        "mean_memory_clock_mhz",
    },
    "nvmlDeviceGetTemperature": {"peak_temperature_c"},
    "nvmlDeviceGetMemoryInfo": {"peak_memory_bytes"},
    "nvmlDeviceGetComputeRunningProcesses": {"foreign_processes"},
}


@pytest.mark.parametrize("query", QUERIES)
def test_a_device_that_does_not_support_a_query_loses_its_figures_alone(query: str) -> None:
    library = FakeNvml()
    library.refuses[query] = NOT_SUPPORTED

    def change(i: int) -> None:
        library.energy_mj += 1000

    use = sampled(library, change=change)
    missing = {name for name in GpuUse.__slots__ if getattr(use, name) is None}
    assert missing == TOLD_BY.get(query, set())
    assert gpu_cautions(use) == ()


def test_one_that_supports_nothing_is_a_use_without_figures() -> None:
    library = FakeNvml()
    library.refuses = dict.fromkeys(QUERIES, NOT_SUPPORTED)
    use = sampled(library)
    told = {name for name in GpuUse.__slots__ if getattr(use, name) is not None}
    assert told == {"wall_s", "num_samples", "period_s", "sampling_share", "clock_reasons"}


def test_a_throttled_gpu_says_so_and_a_power_cap_is_no_fault() -> None:
    library = FakeNvml()

    def change(i: int) -> None:
        library.reasons = 0x4 | (0x20 if i >= 28 else 0)

    use = sampled(library, 30, change)
    assert use.clock_reasons == {"power cap": 1.0, "thermal slowdown": pytest.approx(2 / 30)}
    assert gpu_cautions(use) == ("throttled: thermal slowdown in 7 % of the samples",)


def test_changed_clocks_say_so_but_not_those_of_an_idle_gpu() -> None:
    library = FakeNvml()

    def idle_first(i: int) -> None:
        library.reasons, library.sm_mhz = (0x1, 345) if i < 10 else (0, 1980)

    use = sampled(library, change=idle_first)
    assert (use.min_sm_clock_mhz, use.max_sm_clock_mhz, gpu_cautions(use)) == (1980.0, 1980.0, ())
    assert use.clock_reasons == {}

    def slower(i: int) -> None:
        library.reasons, library.sm_mhz = 0, 1980 if i < 15 else 1200

    use = sampled(library, 30, slower)
    assert use.mean_sm_clock_mhz == pytest.approx(1590.0)
    assert gpu_cautions(use) == ("clocks changed: the SMs ran at 1,200 to 1,980 MHz, 1,590 on average",)


@pytest.mark.parametrize(
    ("pids", "foreign", "told"),
    [
        ([4711], 0, ()),
        ([1, 2], 1, ("shared: another process computed on the GPU, or could",)),
        ([1, 2, 3, 3], 2, ("shared: 2 others computed on the GPU, or could",)),
        ([], None, ()),  # not even this one: the list is hidden
    ],
)
def test_of_the_processes_one_is_this_whatever_its_number(
    pids: list[int], foreign: int | None, told: tuple[str, ...]
) -> None:
    use = sampled(FakeNvml(pids=pids))
    assert use.foreign_processes == foreign and gpu_cautions(use) == told


def test_who_started_it_and_waits_is_not_foreign() -> None:
    """As a benchmark that has used the GPU itself, and then runs a sweep."""
    own, parent, other = os.getpid(), os.getppid(), 2**31
    assert sampled(FakeNvml(pids=[own, parent])).foreign_processes == 0
    assert sampled(FakeNvml(pids=[own, parent, other])).foreign_processes == 1
    assert sampled(FakeNvml(pids=[parent, other])).foreign_processes == 1


def test_who_came_and_went_was_there() -> None:
    library = FakeNvml()

    def change(i: int) -> None:
        library.pids = [4711, 1] if i == 10 else [4711]

    assert sampled(library, change=change).foreign_processes == 1


def test_lists_of_processes_are_asked_for_once_a_second() -> None:
    library = FakeNvml()
    sampled(library, 105)
    assert library.asked.count("nvmlDeviceGetComputeRunningProcesses") == 12
    assert library.asked.count("nvmlDeviceGetPowerUsage") == 105


def kept(value: Any) -> int:
    """Objects that this one holds, itself included; of the GPU only itself."""
    if isinstance(value, dict | list | tuple | set | deque):
        return 1 + sum(kept(one) for one in (value.values() if isinstance(value, dict) else value))
    names = getattr(value, "__slots__", None) or list(getattr(value, "__dict__", ()))
    return 1 if isinstance(value, Gpu) else 1 + sum(kept(getattr(value, name)) for name in names)


def test_nothing_that_is_kept_grows_with_the_span() -> None:
    library = FakeNvml()
    gpu_tally, cpu_tally = Tally(open_gpu(library=library)), cpu.Tally(2)
    sizes = []
    for i in range(300):
        library.reasons = 1 << i % 11
        gpu_tally.sample(i * 0.1)
        cpu_tally.add(cpu.Reading(i * 0.1, i * 0.05, i * 0.1), 1)
        sizes.append(kept(gpu_tally) + kept(cpu_tally))
    assert sizes[20] == sizes[-1] > 30


def test_a_thread_samples_from_enter_to_exit() -> None:
    library = FakeNvml()
    telemetry = GpuTelemetry(open_gpu(library=library), interval_s=0.001)
    with telemetry:
        ends = time.perf_counter() + 5.0
        while library.asked.count("nvmlDeviceGetPowerUsage") < 4 and time.perf_counter() < ends:
            time.sleep(0.001)
        assert any(thread.name == "gpu-telemetry" for thread in threading.enumerate())
    use = telemetry.use
    assert use is not None and use.num_samples >= 5 and use.sampling_share > 0.0
    assert not any(thread.name == "gpu-telemetry" for thread in threading.enumerate())
    with telemetry:
        pass
    assert telemetry.use is not None and telemetry.use.num_samples == 2


def test_without_a_gpu_nothing_is_sampled() -> None:
    telemetry = GpuTelemetry(None)
    with telemetry:
        assert not any(thread.name == "gpu-telemetry" for thread in threading.enumerate())
    assert telemetry.use is None


def test_it_ends_with_an_error_inside() -> None:
    telemetry = GpuTelemetry(open_gpu(library=FakeNvml()))
    with pytest.raises(RuntimeError, match="inside"), telemetry:
        raise RuntimeError("inside")
    assert telemetry.use is not None


def test_a_driver_that_answers_slowly_is_asked_less_often() -> None:
    telemetry = GpuTelemetry(open_gpu(library=FakeNvml()))
    assert telemetry.wait_s(took_s=0.0005) == pytest.approx(0.0995)
    slow = telemetry.wait_s(took_s=0.05)
    assert 0.05 / (0.05 + slow) <= 0.02


def test_a_driver_that_hangs_does_not_hold_up_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PATIENCE_S", 0.01)
    library, hangs, entered = FakeNvml(), threading.Event(), threading.Event()

    def hang(handle: int) -> int:
        if threading.current_thread().name == "gpu-telemetry":
            entered.set()
            hangs.wait(5.0)
        return 300_000

    library.nvmlDeviceGetPowerUsage = hang  # type: ignore[method-assign]
    telemetry = GpuTelemetry(open_gpu(library=library), interval_s=0.001)
    with telemetry:
        assert entered.wait(5.0)
    assert library.asked.count("nvmlDeviceGetPowerUsage") == 2 and not hangs.is_set()
    hangs.set()


def test_others_on_the_processor_are_told_of_a_span_that_is_long_enough() -> None:
    def use(wall_s: float, share: float) -> CpuUse:
        return CpuUse(wall_s, 100.0, 200.0 * share, share, share, 1)

    assert cpu_cautions(use(5.0, 0.25)) == ("shared: other programs took 25 % of the processor",)
    assert cpu_cautions(use(0.5, 0.25)) == cpu_cautions(use(5.0, 0.09)) == cpu_cautions(None) == ()
