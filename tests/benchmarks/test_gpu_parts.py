"""How the GPU's benchmark judges, stops and goes on; nothing is measured here."""

from __future__ import annotations

import dataclasses
import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gpu
import pytest
import torch
from claimed.claim import Band, Figure
from on_gpu import fused_check, host, kernel_check, offline, prefill, seam, sweep, work
from on_gpu.attention_step import Heads, attention_step
from on_gpu.bench import GpuBench
from on_gpu.budget import Budget, allowed_s
from on_gpu.divergence import Divergence
from on_gpu.found import Bar, Found, Part, WrongResultError
from on_gpu.setting import DRY
from peers.work import Case, Turn

from tunebatch.cli import sweep_folder
from tunebatch.engine.request import Request
from tunebatch.execute.torch.attention.base import Variant
from tunebatch.execute.torch.attention.reference import Reference
from tunebatch.measure.kv_memory import KvLayout
from tunebatch.measure.step_work import ModelWork
from tunebatch.profile import load_profile

BAR = Bar("as fast as can be", Band(low=0.8), "%")


@pytest.mark.parametrize(("share", "verdict"), [(0.81, "met"), (0.8, "met"), (0.79, "missed")])
def test_a_bar_is_met_or_missed(share: float, verdict: str) -> None:
    told = BAR.dict(Figure((share,), "%"))
    assert (told["verdict"], told["wanted"], told["value"]) == (verdict, "at least 80 %", share)


def test_a_bar_without_a_figure_says_why() -> None:
    told = BAR.dict(None, "out of time")
    assert (told["verdict"], told["measured"], told["value"]) == ("not measured", "out of time", None)


def test_what_there_is_no_time_to_compile_is_not_loaded() -> None:
    found = Found("")
    bench = GpuBench(dataclasses.replace(DRY, small="no model of that name", compile_s=1e9))
    assert prefill._compiled(bench, found) is None
    assert found.not_measured == ["no model of that name through torch.compile: out of time"]


def test_the_offline_requests_are_nano_vllms_to_the_token() -> None:
    drawn = offline.requests(256, (100, 1024))
    assert sum(request.max_tokens for request in drawn) == 133_966
    assert {len(request.prompt) for request in drawn} <= set(range(100, 1025))


def test_a_peer_that_breaks_off_costs_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it raises, while it loads or in the middle of a round."""
    asked = offline.requests(3, (4, 6))

    def side(fails_in_turn: int | None = None) -> Callable[..., Any]:
        turns = 0

        def turn(requests: list[Request]) -> Turn:
            nonlocal turns
            turns += 1
            if turns == fails_in_turn:
                raise KeyError("page_size")
            return Turn(1.0, [[7] * request.max_tokens for request in requests], None)

        return lambda case: turn

    def unloadable(case: Case) -> Any:
        raise ImportError("needs a kernel\nthat is not here")

    bench = GpuBench(dataclasses.replace(DRY, rounds=2), say=lambda text: None)
    case = Case(Path(), "float32", len(asked), asked)
    for name, make in (("ours", side()), ("generate_batch", unloadable), ("generate", side(3))):
        monkeypatch.setattr(offline, name, make)
    turns, whys = offline._take_turns(bench, case)
    assert {name: len(own) for name, own in turns.items()} == {"ours": 2, "generate": 1}
    assert whys == {
        "generate_batch": "needs a kernel",
        "generate": "broke off in round 2: 'page_size'",
    }
    monkeypatch.setattr(offline, "ours", side(2))
    with pytest.raises(KeyError):
        offline._take_turns(bench, case)


def test_a_sweep_may_batch_as_many_as_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, str]] = []

    def run(command: list[str], *, env: dict[str, str], **_: Any) -> subprocess.CompletedProcess[str]:
        asked.append(env)
        return subprocess.CompletedProcess(command, 0, "mixed serves most\n", "")

    monkeypatch.setattr(sweep.subprocess, "run", run)
    monkeypatch.setattr(sweep, "NEEDED", ())
    setting = dataclasses.replace(DRY, dry=False, max_slots=512)
    bench = GpuBench(setting, say=lambda text: None, budget=Budget(900.0))
    assert list(sweep.measure(bench).data["answers"].values()) == ["mixed serves most"] * 2
    assert [load_profile(environ=env).device.max_slots for env in asked] == [512, 512]


def test_a_sweep_begins_beside_those_of_earlier_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        folder = Path(command[command.index("--out") + 1])
        assert not sweep_folder.begun(folder)
        folder.mkdir()
        (folder / "command.json").write_text("{}")
        return subprocess.CompletedProcess(command, 0, folder.name, "")

    monkeypatch.setattr(sweep.subprocess, "run", run)
    monkeypatch.setattr(sweep, "NEEDED", ())
    bench = GpuBench(dataclasses.replace(DRY, dry=False), tmp_path, lambda text: None, Budget(900.0))
    answers = [sweep.measure(bench).data["answers"][DRY.small] for _ in range(3)]
    assert answers == [f"sweep-{DRY.small}{number}" for number in ("", "-2", "-3")]


def test_the_batch_that_is_judged_is_measured_however_long_loading_took(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    measured: list[tuple[str, int]] = []
    monkeypatch.setattr(GpuBench, "load", lambda _, model: model)
    monkeypatch.setattr(host, "_split", lambda _, model, batch: measured.append((model, batch)) or {})
    monkeypatch.setattr(host, "_overlap", lambda *_: {})
    missing: list[str] = []
    host._of_model(GpuBench(DRY), "tiny", Budget(0.0), missing, [], [])
    first, *others = DRY.host_batches
    assert measured == [("tiny", first)]
    assert missing == [f"tiny, batch {batch}: out of time" for batch in others]


def test_parts_share_the_time_by_what_they_want() -> None:
    assert allowed_s(60.0, 200.0, None) == 60.0
    assert allowed_s(60.0, 200.0, 100.0) == 30.0
    assert allowed_s(60.0, 200.0, 10_000.0) == 60.0
    assert Budget(0.0).over() and not Budget(100.0).over()


def test_work_of_a_step_is_weights_and_what_it_sees() -> None:
    layout = KvLayout(kv_heads=2, head_dim=8, windows=(None, None), element_bytes=2)
    model = ModelWork(body_weights=1000, head_weights=100, weight_bytes=2, heads=4, layout=layout)
    a_token = 2 * 2 * 2 * 8 * 2
    assert layout.bytes_per_token == a_token
    # Each of 3 sequences reads 10 tokens, its own included, and writes one.
    assert work.decode_bytes(model, 3, 10) == 1100 * 2 + 3 * 11 * a_token
    # Of a prompt of 3: 1 + 2 + 3 pairs in each of both layers, four operations a number and head.
    assert work.prefill_flops(model, [3]) == 2 * (3 * 1000 + 100) + 4 * 4 * 8 * 2 * 6


@pytest.mark.parametrize(
    "variant",
    [Variant(0.2), Variant(0.2, window=3), Variant(0.2, softcap=2.0), Variant(0.2, sinks=torch.ones(6))],
)
def test_float64_agrees_with_the_reference(variant: Variant) -> None:
    backend = Reference()
    made = attention_step(
        backend,
        Heads(2, 3, 16),
        starts=[0, 5, 20],
        counts=[7, 4, 1],
        variant=variant,
        dtype=torch.float32,
        device="cpu",
        block_size=4,
        seed=1,
    )
    torch.testing.assert_close(made.attend(backend).double(), made.exact(), rtol=1e-5, atol=1e-5)
    assert made.wrong_slots() == 0
    made.step.cache.layers[0][1].zero_()
    assert made.wrong_slots() == 12


def test_a_kernel_that_is_wrong_is_named_with_its_step(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong(Reference):
        def attend(self, *arguments: Any) -> torch.Tensor:
            return super().attend(*arguments) * 1.001

    monkeypatch.setattr(kernel_check, "_backend", lambda device: Wrong())
    with pytest.raises(WrongResultError, match=r"^attention step 0 .* differs from float64 by 0\.00"):
        kernel_check.check_kernel(GpuBench(DRY), Budget(60.0))


def test_what_is_fused_is_compared_with_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="Triton is not installed: its kernels cannot be tested")
    bench = GpuBench(dataclasses.replace(DRY, kernel_dtypes=("float16", "bfloat16")))
    (table,), data = fused_check.check_fused(bench)
    rows: Any = data["rows"]
    # The interpreter is not trusted with bfloat16.
    assert [(row["what"], row["dtype"]) for row in rows] == [
        (what, "float16") for what in ("norms", "rotary", "gates")
    ]
    assert rows[1]["equal"] == 1.0 and all(row["equal"] > 0.99 for row in rows) and len(table.rows) == 3
    monkeypatch.setattr(fused_check, "silu_times", lambda gate, up: 1.01 * torch.sigmoid(gate) * gate * up)
    with pytest.raises(WrongResultError, match=r"^gates of 1 tokens in float16 differs from torch's by 0\.0"):
        fused_check.check_fused(bench)


def test_kernels_of_a_step_are_told_by_the_layer() -> None:
    row = {
        "model": "llama-3.1-8b",
        "batch": 1,
        "step_ms": 5.0,
        "tpot_ms": 5.0,
        "planning_us": None,
        "planning_share": None,
        "kernels_ms": 4.0,
        "host_ms": 1.0,
        "layers": 32,
        "kernels": 360.0,
        "fused": {"fused_rotary": 32, "fused_gates": 32},
    }
    assert "What a decode step launches" not in [
        table.title for table in host._tables([row | {"kernels": None}], [], [])
    ]
    table = host._tables([row], [], [])[1]
    assert table.rows == ["llama-3.1-8b | 1 | 360 | 11.2 | 32 fused rotary, 32 fused gates"]


def test_a_near_tie_is_within_what_rounding_explains() -> None:
    assert Divergence("mixed", 0, 3, gap=0.05, explained=0.1).near_tie
    far = Divergence("mixed", 0, 3, gap=0.2, explained=0.1)
    assert not far.near_tie and "request 0 parts at output token 3" in far.told


def test_a_switch_that_the_engine_has_not_is_not_thrown() -> None:
    def with_switch(*, overlap: bool = True) -> None: ...
    def without() -> None: ...

    assert seam.switch(with_switch, overlap=False) == {"overlap": False}
    assert seam.switch(with_switch, overlap=None) == seam.switch(without, overlap=True) == {}
    assert (seam.default(with_switch, "overlap"), seam.default(without, "overlap")) == (True, None)


Parts = Callable[..., dict[str, Part]]


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> Parts:
    """Puts parts in place of the real ones; those that are not named find nothing."""

    def put(**wanted: Callable[[GpuBench], Found]) -> dict[str, Part]:
        found = {
            name: dataclasses.replace(part, measure=wanted.get(name, lambda bench: Found("nothing")))
            for name, part in gpu.PARTS.items()
        }
        monkeypatch.setattr(gpu, "PARTS", found)
        return found

    return put


def dry(folder: Path, *arguments: str) -> int:
    return gpu.main(["--dry", "--out", str(folder), *arguments])


def report(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "dry" / "gpu.json").read_text())
    return found


def test_nothing_is_timed_where_results_are_wrong(
    parts: Parts, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def wrong(bench: GpuBench) -> Found:
        raise WrongResultError("request 3 has other tokens")

    parts(correctness=wrong)
    assert dry(tmp_path) == 1
    assert list(report(tmp_path)["parts"]) == ["correctness"]
    assert "gpu: correctness: request 3 has other tokens; nothing is timed" in capsys.readouterr().err
    assert "**It broke off: request 3 has other tokens**" in (tmp_path / "dry" / "gpu.md").read_text()


def test_a_part_that_breaks_off_costs_no_other(parts: Parts, tmp_path: Path) -> None:
    def broken(bench: GpuBench) -> Found:
        raise torch.OutOfMemoryError("no room\nat all")

    parts(decode=broken)
    assert dry(tmp_path) == 1
    found = report(tmp_path)["parts"]
    assert list(found) == list(gpu.PARTS)
    assert [name for name, part in found.items() if part["failed"]] == ["decode"]
    assert found["decode"]["failed"] == "no room"
    assert found["decode"]["bars"][0]["measured"] == "it broke off"


def test_what_was_written_before_is_kept(parts: Parts, tmp_path: Path) -> None:
    parts(prefill=lambda bench: Found("the first"), decode=lambda bench: Found("the first"))
    assert dry(tmp_path, "--only", "prefill,decode") == 0
    assert list(report(tmp_path)["parts"]) == ["correctness", "ceilings", "decode", "prefill"]
    not_run = {bar["bar"] for bar in report(tmp_path)["bars_not_run"]}
    assert gpu.PARTS["host"].bars[0].text in not_run and gpu.PARTS["decode"].bars[0].text not in not_run
    parts(decode=lambda bench: Found("the second"))
    assert dry(tmp_path, "--only", "decode") == 0
    kept = report(tmp_path)["parts"]
    assert (kept["prefill"]["setting"], kept["decode"]["setting"]) == ("the first", "the second")


def test_each_part_is_told_its_time(parts: Parts, tmp_path: Path) -> None:
    given: dict[str, float] = {}

    def noted(name: str) -> Callable[[GpuBench], Found]:
        def measure(bench: GpuBench) -> Found:
            given[name] = bench.budget.left_s()
            return Found("")

        return measure

    parts(**{name: noted(name) for name in ("correctness", "ceilings", "decode")})
    assert dry(tmp_path, "--only", "decode", "--budget", "30") == 0
    # A third of it each; what the first leave is the last one's, up to what it wants.
    assert given["correctness"] <= 10.0 < given["decode"] <= gpu.DRY_S


def test_the_engine_need_not_be_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine where nothing can be: Python itself only looks beside the script."""
    root = Path(gpu.__file__).parents[1]
    monkeypatch.setattr(sys, "path", [str(root / "benchmarks"), "elsewhere"])
    importlib.reload(gpu)
    assert sys.path == [str(root / "benchmarks"), str(root), "elsewhere"]


def test_without_a_gpu_one_line_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 2
    assert capsys.readouterr().err == (
        "gpu: torch finds no CUDA device here; --dry runs everything through on a CPU\n"
    )


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--only", "decoding"], "no part 'decoding'; one of"),
        (["--budget", "0"], "number of seconds above 0"),
    ],
)
def test_bad_arguments_are_refused(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        gpu.main(arguments)
    assert stopped.value.code == 2 and told in capsys.readouterr().err
