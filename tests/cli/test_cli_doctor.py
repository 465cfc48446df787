"""What the doctor finds, and that whatever is missing comes with what mends it."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_nvml import DRIVER_NOT_LOADED, LIBRARY_NOT_FOUND, NO_PERMISSION, NOT_SUPPORTED, QUERIES, FakeNvml

from tunebatch.cli import doctor, doctor_gpu
from tunebatch.measure.decode_balance import Peaks
from tunebatch.measure.telemetry.nvml import open_gpu


def checks(done: Any) -> dict[str, Any]:
    return {check["what"]: check for check in json.loads(done.out)["checks"]}


def test_it_tells_device_memory_and_versions(tunebatch: Any) -> None:
    done = tunebatch("doctor", "--json")
    found = checks(done)
    assert found["torch"]["found"] == metadata.version("torch") and found["optuna"]["state"] == "ok"
    assert found["memory"]["found"].endswith("available")
    assert found["device"]["found"].startswith("cuda: " if torch.cuda.is_available() else "cpu")
    assert found["bundled model"]["found"] == "present"
    printed = tunebatch("doctor")
    assert printed.code == done.code and "numba" in printed.out
    assert max(map(len, printed.out.splitlines())) < 200


def test_a_missing_and_an_old_library_come_with_the_command_that_mends_them(
    tunebatch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = metadata.version

    def without_numba(name: str) -> str:
        if name == "numba":
            raise metadata.PackageNotFoundError(name)
        return "4.99.1" if name == "transformers" else version(name)

    monkeypatch.setattr(metadata, "version", without_numba)
    done = tunebatch("doctor", "--json")
    assert done.code == 7
    found = checks(done)
    assert found["numba"]["state"] == "missing" and "pip install 'numba>=" in found["numba"]["mend"]
    assert found["transformers"]["found"].startswith("4.99.1; ") and found["transformers"]["mend"]
    assert "something is missing" in tunebatch("doctor").out


def test_without_torch_it_still_tells_the_rest(tunebatch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
    found = checks(tunebatch("doctor", "--json"))
    assert found["device"]["state"] == "warning" and "torch" in found["device"]["found"]
    assert found["Python"]["state"] == "ok"


def test_it_tells_which_kernels_attend(tunebatch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    if not torch.cuda.is_available():
        assert checks(tunebatch("doctor", "--json"))["attention"]["found"] == "compiled, for CPUs"
    monkeypatch.setattr(metadata, "version", lambda name: {"triton": "3.6.0"}[name])
    assert doctor._attention(gpu=True)["found"] == "triton 3.6.0"

    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    without = doctor._attention(gpu=True)
    assert without["state"] == "warning" and without["mend"].endswith("-m pip install triton")


GPUS = {
    "no GPU": ((None, None), False, "12.8", None),
    "no driver": ((None, None), True, "12.8", "no driver answers"),
    "torch for CPUs": (("NVIDIA H100", "550.1"), True, None, "built without CUDA"),
    "old driver": (("NVIDIA H100", "450.1"), True, "12.8", "update NVIDIA's driver"),
}


@pytest.mark.parametrize(("driver", "on_bus", "built_for", "told"), GPUS.values(), ids=GPUS.keys())
def test_a_gpu_that_torch_cannot_use(
    driver: Any, on_bus: bool, built_for: str | None, told: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_driver", lambda: driver)
    monkeypatch.setattr(doctor, "nvidia_on_the_bus", lambda: on_bus)
    found = doctor._idle_gpu(built_for)
    assert len(found) == (told is not None)
    for check in found:
        assert check["state"] == "missing" and check["mend"] and told in f"{check['found']} {check['mend']}"


def test_a_gpu_is_seen_on_the_bus_without_a_driver(tmp_path: Path) -> None:
    for name, vendor, kind in (("a", "0x8086", "0x030000"), ("b", "0x10de", "0x040300")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "vendor").write_text(f"{vendor}\n")
        (tmp_path / name / "class").write_text(f"{kind}\n")
    assert not doctor.nvidia_on_the_bus(tmp_path)
    (tmp_path / "b" / "class").write_text("0x030200\n")
    assert doctor.nvidia_on_the_bus(tmp_path)


def nvml(library: FakeNvml, *, has_gpu: bool = True, on_cuda: bool = True) -> dict[str, Any]:
    found = doctor_gpu.nvml_checks(lambda: open_gpu(library=library), has_gpu=has_gpu, on_cuda=on_cuda)
    assert library.opened <= 0
    return {one["what"]: one for one in found}


def test_a_gpu_and_what_its_driver_tells() -> None:
    found = nvml(FakeNvml())
    assert list(found) == ["GPU", "NVML"]
    assert found["GPU"]["found"] == (
        "NVIDIA Fake, 80.0 GiB, SM clock up to 1,980 MHz, power limit 700 W, 55 C now"
    )
    assert found["NVML"]["found"] == "12.555, driver 555.42" and found["NVML"]["state"] == "ok"
    assert list(nvml(FakeNvml(), on_cuda=False)) == ["NVML"]


def test_what_a_driver_does_not_tell_is_named_and_no_fault() -> None:
    library = FakeNvml()
    library.refuses = {"nvmlDeviceGetTotalEnergyConsumption": NOT_SUPPORTED}
    (line,) = nvml(library, on_cuda=False).values()
    assert line["found"].endswith("; n/a here: TotalEnergyConsumption") and line["state"] == "ok"
    library.refuses = dict.fromkeys(QUERIES, NOT_SUPPORTED)
    assert nvml(library)["GPU"]["found"] == "a GPU without a name"
    (line,) = nvml(FakeNvml(mig=True), on_cuda=False).values()
    assert line["found"].endswith("; n/a here: power and energy of a MIG device")


def test_others_on_the_gpu_are_a_warning() -> None:
    assert nvml(FakeNvml(pids=[1, 2]))["GPU load"]["found"].startswith("another process is on the GPU")
    check = nvml(FakeNvml(pids=[1, 2, 3]))["GPU load"]
    assert (
        check["state"] == "warning"
        and check["found"].startswith("2 others")
        and "nvidia-smi" in check["mend"]
    )
    assert "GPU load" not in nvml(FakeNvml(pids=[]))


@pytest.mark.parametrize("error", [DRIVER_NOT_LOADED, LIBRARY_NOT_FOUND, NO_PERMISSION])
def test_where_nvml_fails_one_line_tells_what_mends_it(error: int) -> None:
    library = FakeNvml()
    library.refuses["nvmlInit"] = error
    ((what, check),) = nvml(library).items()
    assert what == "NVML" and check["state"] == "warning" and check["mend"]
    assert check["found"].endswith("; utilization, power and energy stay n/a")
    (check,) = nvml(library, has_gpu=False, on_cuda=False).values()
    assert (check["state"], check["mend"]) == ("ok", "") and "no NVIDIA GPU" in check["found"]


def test_ceilings_are_measured_when_asked_for(tunebatch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from tunebatch.execute.torch import ceilings

    monkeypatch.setattr(ceilings, "measure_ceilings", lambda *_: Peaks(4.5e11, 2.5e10, "measured here"))
    assert checks(tunebatch("doctor", "--ceilings", "--json"))["ceilings"]["found"] == (
        "0.450 TFLOP/s, 25.0 GB/s, measured here"
    )
    assert "ceilings" not in checks(tunebatch("doctor", "--json"))


def test_attention_of_other_libraries_is_usable_or_it_tells_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    from tunebatch.execute.torch.attention import flash3, flashinfer

    def found(capability: tuple[int, int]) -> dict[str, str]:
        told = doctor_gpu.backend_checks(capability)
        assert {one["state"] for one in told} == {"ok"}  # none is needed
        return {one["what"]: one["found"] for one in told}

    monkeypatch.setattr(flashinfer, "installed", lambda: object())
    monkeypatch.setattr(flash3, "installed", lambda: None)
    assert found((9, 0)) == {
        "flashinfer (optional)": "usable in 16 bits; --backend auto measures it beside the others, and may "
        "choose it where no CUDA graphs are captured ([device] graphs = false)",
        "flash-attn-3 (optional)": "not installed (flash_attn_interface cannot be imported)",
    }
    assert found((7, 5))["flashinfer (optional)"].startswith("needs compute capability 8.0")
    assert found((8, 0))["flash-attn-3 (optional)"].startswith("needs a Hopper GPU")
