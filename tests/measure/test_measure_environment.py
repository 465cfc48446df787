import json
import platform
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from fake_nvml import FakeNvml

import tunebatch
from tunebatch.measure.environment import environment
from tunebatch.measure.telemetry import cpu
from tunebatch.measure.telemetry.cpu import CpuTelemetry, Reading, Tally
from tunebatch.measure.telemetry.nvml import open_gpu


def test_the_facts() -> None:
    facts = environment()
    assert facts["tunebatch"] == tunebatch.__version__
    assert facts["python"] == platform.python_version()
    assert isinstance(facts["cores"], int)
    assert facts["cores"] >= 1
    assert {"platform", "cpu", "memory_bytes", "load_average", "gpu", "torch", "numpy"} <= facts.keys()
    json.dumps(facts, allow_nan=False)


def test_the_machines_name_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: pytest.fail("asked for the host's name"))
    monkeypatch.setattr(platform, "node", lambda: pytest.fail("asked for the host's name"))
    environment()


def test_no_gpu_where_none_is_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert environment()["gpu"] is None


def test_the_gpu_is_told_as_the_driver_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    library = FakeNvml()
    told = {"gpu": "NVIDIA Fake", "gpu_memory_bytes": 80 * 2**30, "gpu_driver": "555.42"}
    assert environment(open_gpu(library=library)).items() >= told.items()
    assert library.opened == 1  # it belongs to who opened it
    monkeypatch.setitem(sys.modules, "pynvml", library)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert environment().items() >= told.items()
    assert library.opened == 1


def test_measuring_loads_no_heavy_library() -> None:
    code = (
        "import sys; import tunebatch.measure.result, tunebatch.measure.environment; "
        "tunebatch.measure.environment.environment(); "
        "print([m for m in ('torch', 'pandas', 'scipy', 'pydantic') if m in sys.modules])"
    )
    root = Path(tunebatch.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.strip() == "[]"


def test_use_by_hand() -> None:
    # 2 s on 4 cores; the others did nothing in the first second and 1.5 cores' worth in the second.
    tally = Tally(4)
    for i in range(21):
        tally.add(Reading(i / 10, 10 + i / 20, 100 + i / 20 + max(0, i - 10) * 0.15), 123 - i)
    use = tally.use()
    assert use is not None
    assert use.wall_s == pytest.approx(2.0)
    assert use.process_cpu_percent == pytest.approx(50.0)
    assert use.other_cpu_percent == pytest.approx(75.0)
    assert use.foreign_cpu_share == pytest.approx(0.75 / 4)
    assert use.peak_foreign_cpu_share == pytest.approx(1.5 / 4)
    assert use.peak_rss_bytes == 123
    one = Tally(4)
    one.add(Reading(1.0, 1.0, 1.0), 1)
    assert one.use() is None and Tally(4).use() is None


def test_telemetry_of_this_process() -> None:
    telemetry = CpuTelemetry(interval_s=0.01)
    with telemetry:
        sum(range(100_000))
    use = telemetry.use
    assert use is not None
    assert use.process_cpu_percent >= 0.0
    assert 0.0 <= use.foreign_cpu_share <= use.peak_foreign_cpu_share <= 1.0
    assert use.peak_rss_bytes > 1_000_000


def test_telemetry_tolerates_a_system_that_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_: object) -> float:
        raise psutil.AccessDenied

    monkeypatch.setattr(cpu, "_busy_seconds", refused)
    telemetry = CpuTelemetry()
    with telemetry:
        pass
    assert telemetry.use is None


def test_telemetry_ends_with_an_error_inside() -> None:
    telemetry = CpuTelemetry()
    with pytest.raises(RuntimeError, match="inside"), telemetry:
        raise RuntimeError("inside")
    assert telemetry.use is not None
