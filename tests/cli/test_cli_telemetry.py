"""What commands say of the machine: nothing in virtual time, cautions of runs that it disturbed."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fake_nvml import FakeNvml
from tiny_models import tiny

from tunebatch import bench
from tunebatch.cli import instruments
from tunebatch.cli.errors import CliError
from tunebatch.measure.decode_balance import Peaks
from tunebatch.measure.result import read_result
from tunebatch.measure.step_work import model_work
from tunebatch.measure.telemetry.beside import Instruments, Telemetry
from tunebatch.measure.telemetry.cpu import CpuUse
from tunebatch.measure.telemetry.gpu import GpuUse, Tally
from tunebatch.measure.telemetry.nvml import NvmlError, open_gpu
from tunebatch.models.architecture import architecture

CPU = CpuUse(5.0, 150.0, 40.0, 0.2, 0.3, 2**30)


def hot_gpu() -> GpuUse:
    tally = Tally(open_gpu(library=FakeNvml(reasons=0x20)))
    for i in range(3):
        tally.sample(float(i))
    use = tally.use()
    assert use is not None
    return use


@pytest.fixture
def real_time(monkeypatch: pytest.MonkeyPatch) -> list[Instruments]:
    """Runs end as if in real time, on a processor that others used; the instruments of each."""
    given: list[Instruments] = []

    def telemetry(record: Any, metrics: Any, instruments: Instruments, cpu: Any, gpu: Any) -> Telemetry:
        given.append(instruments)
        shared = ("shared: other programs took 20 % of the processor",)
        return Telemetry(CPU, hot_gpu() if instruments.gpu is not None else None, cautions=shared)

    monkeypatch.setattr(bench, "telemetry", telemetry)
    monkeypatch.setattr(bench, "VirtualClock", SimpleNamespace(name="none"))
    return given


def test_in_virtual_time_the_machine_is_not_told(tunebatch: Any) -> None:
    done = tunebatch("run", "static", "-o", "here")
    assert "processor:" not in done.out and "caution" not in done.out
    assert json.loads(Path("here/result.json").read_text())["tunebatch"]["telemetry"] is None


def test_a_run_on_a_shared_processor_says_so(tunebatch: Any, real_time: list[Instruments]) -> None:
    done = tunebatch("run", "static", "-o", "here")
    lines = done.out.splitlines()
    assert any(line.startswith("processor: ") for line in lines)
    assert "caution: shared: other programs took 20 % of the processor" in lines
    assert "GPU" not in done.out and "J/token" not in done.out
    assert read_result("here").telemetry == Telemetry(
        CPU, cautions=("shared: other programs took 20 % of the processor",)
    )
    quiet = tunebatch("run", "static", "-q", "-o", "here")
    assert "caution: shared" in quiet.out and "processor: " not in quiet.out
    compared = tunebatch("compare", "--strategy", "static", "--strategy", "continuous", "-o", "there")
    assert "caution: continuous: shared: other programs" in compared.out


def test_a_sweep_on_a_throttled_gpu_says_so_of_each_row(
    tunebatch: Any, real_time: list[Instruments], monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = open_gpu(library=FakeNvml())
    monkeypatch.setattr(instruments, "instruments_of", lambda *_: Instruments(gpu))
    sweep = ("sweep", "-p", "smoke", "--objective", "throughput", "--slo", "p90_ttft<=1min", "--trials", "2")
    done = tunebatch(*sweep, "-o", "here")
    told = [line for line in done.out.splitlines() if line.startswith("caution: ") and "throttled" in line]
    assert told and all(line.endswith("throttled: thermal slowdown in 100 % of the samples") for line in told)
    assert "shared: other programs" not in done.out  # it has a line of its own for the processor
    assert "GPU" in done.out and "J/token" not in done.out


def test_ceilings_are_measured_before_the_run_when_asked_for(
    tunebatch: Any, real_time: list[Instruments], monkeypatch: pytest.MonkeyPatch
) -> None:
    ceilings = Peaks(1e12, 1e11, "measured here")
    monkeypatch.setattr(instruments, "measured_ceilings", lambda executor: ceilings)
    monkeypatch.setenv("TUNEBATCH_DEVICE_PRICE_PER_HOUR", "2.5")
    assert tunebatch("run", "static", "--telemetry", "-o", "here").code == 0
    assert tunebatch("run", "static", "-o", "here").code == 0
    assert real_time == [Instruments(ceilings=ceilings, price_per_hour=2.5), Instruments(price_per_hour=2.5)]


def test_compare_and_sweep_measure_ceilings_once_and_show_the_shares(
    tunebatch: Any, real_time: list[Instruments], monkeypatch: pytest.MonkeyPatch
) -> None:
    ceilings, asked = Peaks(1e12, 1e11, "measured here"), []
    monkeypatch.setattr(instruments, "measured_ceilings", lambda executor: asked.append(1) or ceilings)
    compare = ("compare", "--strategy", "static", "--strategy", "continuous")
    sweep = ("sweep", "-p", "smoke", "--objective", "throughput", "--slo", "p90_ttft<=1min", "--trials", "2")
    for place, command in enumerate((compare, sweep), 1):
        real_time.clear()
        assert tunebatch(*command, "--telemetry", "-o", f"here{place}").code == 0
        assert len(asked) == place and real_time and {one.ceilings for one in real_time} == {ceilings}
    real_time.clear()
    assert tunebatch(*compare, "-o", "there").code == 0
    assert {one.ceilings for one in real_time} == {None} and len(asked) == 2
    mixed = tunebatch("compare", "there/static", "there/continuous", "--telemetry")
    assert mixed.code == 2 and "--telemetry measures anew" in mixed.err


def test_without_room_for_ceilings_it_says_what_to_lower(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from tunebatch.execute.torch import ceilings

    def full(*_: Any) -> Peaks:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(ceilings, "measure_ceilings", full)
    executor = SimpleNamespace(device="cpu", model=SimpleNamespace(dtype=torch.float32))
    with pytest.raises(CliError, match=r"lower \[device\] utilization"):
        instruments.measured_ceilings(executor)


def test_a_price_must_be_one(tunebatch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNEBATCH_DEVICE_PRICE_PER_HOUR", "0")
    done = tunebatch("run", "static", "-o", "here")
    assert done.code == 2 and "TUNEBATCH_DEVICE_PRICE_PER_HOUR" in done.err and done.err.count("\n") == 1


def test_a_model_is_counted_by_its_own_config() -> None:
    executor = SimpleNamespace(model=tiny(), model_info={"device": "cpu", "dtype": "bfloat16"})
    found = instruments.instruments_of(executor)
    assert found == Instruments(work=model_work(architecture(executor.model.config.to_dict()), 2))
    assert found.work is not None
    linear = sum(
        module.weight.numel() for module in executor.model.modules() if type(module).__name__ == "Linear"
    )
    norms = executor.model.config.hidden_size * (2 * executor.model.config.num_hidden_layers + 1)
    assert found.work.body_weights + found.work.head_weights == linear + norms
    executor.model.config = SimpleNamespace(
        get_text_config=lambda: SimpleNamespace(to_dict=lambda: {"model_type": "unheard of"})
    )
    assert instruments.instruments_of(executor) == Instruments()


def test_the_gpu_is_the_one_that_torch_computes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from tunebatch.measure.telemetry import nvml

    fake, asked = FakeNvml(uuids=["GPU-aa-bb"]), []

    def opened(uuid: str | None) -> Any:
        asked.append(uuid)
        return open_gpu(uuid, fake)

    monkeypatch.setattr(nvml, "open_gpu", opened)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="aa-bb"))
    executor = SimpleNamespace(model_info={"device": "cuda"}, device="cuda:0")
    found = instruments.instruments_of(executor)
    assert asked == ["aa-bb"] and found.gpu is not None and found.gpu.name() == "NVIDIA Fake"
    fake.uuids = []
    assert instruments.instruments_of(executor).gpu is None
    with pytest.raises(NvmlError):
        instruments.open_gpu_of("cuda:0")
