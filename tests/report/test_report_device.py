"""The device's columns and lines: what was told, n/a for the rest, and no column of n/a alone."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from rich.console import Console

from tunebatch.measure.conditions import Conditions
from tunebatch.measure.decode_balance import Peaks
from tunebatch.measure.telemetry.beside import Telemetry
from tunebatch.measure.telemetry.cpu import CpuUse
from tunebatch.measure.telemetry.gpu import GpuUse
from tunebatch.measure.utilization import Utilization
from tunebatch.report.device import caution_lines, device_columns, device_lines
from tunebatch.report.rows import Row
from tunebatch.report.tables import strategy_tables

GPU = GpuUse(
    wall_s=10.0,
    num_samples=101,
    period_s=0.1,
    sampling_share=0.001,
    sm_utilization=0.874,
    memory_utilization=0.62,
    mean_power_w=612.4,
    peak_power_w=698.0,
    power_limit_w=700.0,
    energy_j=6124.0,
    energy_source="counter",
    mean_sm_clock_mhz=1755.0,
    min_sm_clock_mhz=1740.0,
    max_sm_clock_mhz=1770.0,
    mean_memory_clock_mhz=2619.0,
    clock_reasons={"power cap": 0.25},
    peak_memory_bytes=71 * 2**30,
    foreign_processes=0,
    peak_temperature_c=61.0,
)
CPU = CpuUse(2.0, 180.0, 10.0, 0.05, 0.1, 3 * 2**29)
NOTHING = dataclasses.replace(
    GPU,
    clock_reasons={},
    **{name: None for name, kind in GpuUse.__annotations__.items() if "None" in kind},
)


def seen(row: Row, told: Telemetry | None, clock: str = "wall", **environment: Any) -> Row:
    result = dataclasses.replace(
        row.result,
        telemetry=told,
        conditions=Conditions(clock, 1.0, 0, None),
        environment={"cores": 2, **environment},
    )
    return dataclasses.replace(row, result=result)


def test_columns_appear_where_any_row_fills_them(make_row: Any) -> None:
    on_gpu = seen(make_row("mixed", 5.0), Telemetry(CPU, GPU, 0.4123, 1.25))
    on_cpu = seen(make_row("static", 2.0), Telemetry(CPU))
    silent = seen(make_row("dynamic", 2.0), None)
    assert device_columns([on_cpu, silent]) == {}
    assert device_columns([on_cpu, on_gpu, silent]) == {
        "GPU": ["n/a", "87 %", "n/a"],
        "J/token": ["n/a", "0.412", "n/a"],
        "cost/Mtok": ["n/a", "1.25", "n/a"],
    }
    no_energy = seen(make_row("mixed", 5.0), Telemetry(CPU, GPU))
    assert list(device_columns([no_energy])) == ["GPU"]
    ceilings = Peaks(1e12, 1e11, "measured")
    used = seen(
        make_row("mixed", 5.0),
        Telemetry(CPU, utilization=Utilization(1.0, 4e11, 3e9, 0.4, 0.03, 0.5, ceilings)),
    )
    unmeasured = seen(make_row("mixed", 5.0), Telemetry(CPU, utilization=Utilization(1.0, 4e11, 3e9)))
    assert device_columns([used, unmeasured, silent]) == {
        "MFU": ["40 %", "n/a", "n/a"],
        "MBU": ["3.0 %", "n/a", "n/a"],
    }
    assert device_columns([unmeasured]) == {}


def test_the_table_has_them_last(make_row: Any) -> None:
    rows = [
        seen(make_row("mixed", 5.0), Telemetry(CPU, GPU, 0.4123)),
        seen(make_row("static", 2.0), Telemetry(CPU)),
    ]
    console = Console(width=200)
    with console.capture() as capture:
        console.print(*strategy_tables(console, rows))
    header, mixed, static = capture.get().splitlines()
    assert header.split()[-3:] == ["KV", "GPU", "J/token"]
    assert mixed.rstrip().endswith("87 %    0.412") and static.rstrip().endswith("n/a      n/a")


def test_the_line_of_a_gpu(make_row: Any) -> None:
    (line,) = device_lines(seen(make_row("mixed", 5.0), Telemetry(CPU, GPU, 0.4123)).result)
    assert line == (
        "GPU: 87 % of the time busy, memory 62 %; 612 of 700 W; 0.412 J/token (by the GPU's counter); "
        "SM clock 1,755 MHz (power cap in 25 % of the samples); 71.0 GiB in use; up to 61 C; "
        "sampled every 100 ms"
    )
    by_power = dataclasses.replace(GPU, energy_source="power")
    (line,) = device_lines(seen(make_row("mixed", 5.0), Telemetry(CPU, by_power, 0.4), "replay").result)
    assert "0.400 J/token (from its power over time, idle gaps left out);" in line


def test_what_a_gpu_does_not_tell_is_n_a(make_row: Any) -> None:
    (line,) = device_lines(seen(make_row("mixed", 5.0), Telemetry(CPU, NOTHING)).result)
    assert line == (
        "GPU: n/a of the time busy, memory n/a; power n/a; J/token n/a; SM clock n/a; memory n/a; "
        "temperature n/a; other processes n/a; sampled every 100 ms"
    )


def test_on_a_processor_the_line_is_of_the_processor(make_row: Any) -> None:
    assert device_lines(seen(make_row("mixed", 5.0), Telemetry(CPU)).result) == [
        "processor: 90 % of 2 cores busy with this, 5 % with others; 1.5 GiB in use"
    ]
    assert device_lines(seen(make_row("mixed", 5.0), Telemetry()).result) == []
    assert device_lines(seen(make_row("mixed", 5.0), None).result) == []


@pytest.mark.parametrize(("mbu", "told"), [(0.62, "62 %"), (1.4, "140 % (a cache keeps some of it)")])
def test_utilization_is_told_where_ceilings_were_measured(make_row: Any, mbu: float, told: str) -> None:
    used = Utilization(8.0, 4e13, 2e12)
    assert len(device_lines(seen(make_row("mixed", 5.0), Telemetry(CPU, utilization=used)).result)) == 1
    ceilings = Peaks(8e14, 3.2e12, "measured here: bfloat16 matrix products and copies")
    used = Utilization(8.0, 4e13, 2e12, 0.05, mbu, 0.8, ceilings)
    _, line = device_lines(seen(make_row("mixed", 5.0), Telemetry(CPU, utilization=used)).result)
    assert line == (
        f"of what the device can do: MFU 5.0 % of 800 TFLOP/s, MBU {told} of 3,200 GB/s; "
        "steps took 1.2 times the least time that both allow; "
        "measured here: bfloat16 matrix products and copies"
    )


def test_cautions_name_their_run_where_there_are_several(make_row: Any) -> None:
    hot = dataclasses.replace(GPU, clock_reasons={"thermal slowdown": 0.5})
    told = Telemetry(CPU, hot, cautions=("throttled", "shared"))
    rows = [seen(make_row("mixed", 5.0), told), seen(make_row("static", 2.0), None)]
    assert caution_lines(rows[:1]) == ["throttled", "shared"]
    assert caution_lines(rows) == ["mixed: throttled", "mixed: shared"]
    assert caution_lines(rows, of_gpu_only=True) == [
        "mixed: throttled: thermal slowdown in 50 % of the samples"
    ]
