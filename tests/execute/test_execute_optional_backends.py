"""Attention of other libraries: what they are called with gives the reference's numbers, what they cannot
serve is refused with the reason, and the one that is fastest is chosen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, get_args

import library_stand_ins
import pytest
import torch
from test_execute_features import serve_all
from test_execute_tokens import expected, network, requests
from tiny_models import BLOCK_SIZE, tiny

from tunebatch.execute.torch import attention, load
from tunebatch.execute.torch.attention import choice, flash3, flashinfer
from tunebatch.execute.torch.attention.asked import Asked, asked_by
from tunebatch.execute.torch.attention.base import AttentionBackend, StepContext, Variant
from tunebatch.execute.torch.attention.reference import Reference
from tunebatch.execute.torch.load import ModelError, serve
from tunebatch.profile_sections import Backend

HOPPER, AMPERE, TURING = (9, 0), (8, 6), (7, 5)
CPU = torch.device("cpu")
LAYER = Asked(4, 2, 64, 64, torch.bfloat16, Variant(0.125), False)
STAND_INS: dict[str, Callable[[], AttentionBackend]] = {
    "flashinfer": lambda: flashinfer.FlashInfer(library_stand_ins),
    "flash-attn-3": lambda: flash3.FlashAttention3(library_stand_ins.flash_attn_with_kvcache),
}


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flashinfer, "installed", lambda: library_stand_ins)
    monkeypatch.setattr(flash3, "installed", lambda: library_stand_ins.flash_attn_with_kvcache)


def test_a_profile_may_name_each_backend() -> None:
    assert set(get_args(Backend)) == {"auto", *attention.BACKENDS, *choice.OPTIONAL}


# A window in all layers; windows and soft-caps in some; a plain one with grouped heads.
@pytest.mark.parametrize("kind", ["mistral", "gemma2", "qwen3"])
@pytest.mark.parametrize("name", STAND_INS)
def test_greedy_tokens_equal_generate(name: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = STAND_INS[name]()
    want = expected(kind)
    model = network(kind)
    model.set_attn_implementation("eager")
    monkeypatch.setattr(load, "_attention", lambda *_: (backend, {}))
    served = serve(model, name=kind, block_size=BLOCK_SIZE, num_blocks=20, max_slots=8)
    assert served.model_info["attention_backend"] == name
    assert served.model_info["self_check_error"] < 1e-5
    # Steps of chunks and decodes together, of prompts alone, and of decodes alone.
    for chosen in ("mixed", "continuous"):
        record = serve_all(served, chosen, requests(199))
        assert {one.id: one.output for one in record.requests} == want


def test_a_plan_serves_all_layers_that_ask_for_the_same() -> None:
    backend = flashinfer.FlashInfer(library_stand_ins)
    step = choice._step(backend, 4, CPU, 2, 9, 1)
    parts = choice._parts(LAYER, 2, CPU)
    for layer in range(3):
        backend.attend(*parts, layer, LAYER.variant, step)
    backend.attend(*parts, 3, replace(LAYER.variant, window=5), step)
    plans = [decode.num_plans for _, decode in backend._wrappers.values()]
    assert plans == [1, 1]
    backend.attend(*parts, 0, LAYER.variant, replace(step))
    assert [decode.num_plans for _, decode in backend._wrappers.values()] == [2, 1]


def test_a_step_that_the_host_did_not_lay_out_is_read_back() -> None:
    backend = flashinfer.FlashInfer(library_stand_ins)
    step = choice._step(backend, 4, CPU, 2, 9, 1)
    parts = choice._parts(LAYER, 2, CPU)
    known = backend.attend(*parts, 0, LAYER.variant, step)
    unknown = backend.attend(*parts, 0, LAYER.variant, replace(step, host_lens=None))
    assert torch.equal(known, unknown)


REFUSED: list[tuple[str, dict[str, Any], tuple[int, int], str]] = [
    ("flashinfer", {}, TURING, "needs compute capability 8.0, this GPU has 7.5"),
    ("flashinfer", {"dtype": torch.float32}, HOPPER, "float32 is not supported"),
    ("flashinfer", {"dim": 96}, HOPPER, "head size 96 is none of 64, 128, 256"),
    ("flashinfer", {"value_dim": 32}, HOPPER, "values of size 32 beside keys of size 64"),
    ("flashinfer", {"sinks": True}, HOPPER, "attention sinks are not supported"),
    ("flash-attn-3", {}, AMPERE, r"needs a Hopper GPU \(compute capability 9.0\), this one has 8.6"),
    ("flash-attn-3", {"dtype": torch.float32}, HOPPER, "float32 is not supported"),
    ("flash-attn-3", {"dim": 320}, HOPPER, "head size 320 is no multiple of 8 up to 256"),
    ("flash-attn-3", {"value_dim": 32}, HOPPER, "values of size 32 beside keys of size 64"),
    ("flash-attn-3", {"sinks": True}, HOPPER, "attention sinks are not supported"),
]


@pytest.mark.parametrize(("name", "changes", "capability", "why"), REFUSED)
def test_what_they_cannot_serve_is_refused_with_the_reason(
    name: str, changes: dict[str, Any], capability: tuple[int, int], why: str, installed: None
) -> None:
    layers = [LAYER, replace(LAYER, **changes)]
    with pytest.raises(ValueError, match=rf"^attention backend {name}: {why}.*; use \w+$"):
        attention.choose_for_gpu(name, layers, 16, CPU, capability)


@pytest.mark.parametrize("name", STAND_INS)
def test_who_is_not_installed_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="not installed"):
        attention.choose_for_gpu(name, [LAYER], 16, CPU, HOPPER)


@pytest.mark.parametrize("name", STAND_INS)
def test_on_a_cpu_they_are_refused(name: str) -> None:
    with pytest.raises(
        ModelError, match=rf"^attention backend {name}: runs on a CUDA device only; use compiled"
    ):
        serve(tiny(), name="tiny", backend=name)
    with pytest.raises(ModelError, match=r"unknown attention backend 'fast'; one of auto, .*flash-attn-3"):
        serve(tiny(), name="tiny", backend="fast")


def test_who_is_asked_for_is_taken(installed: None) -> None:
    for name in STAND_INS:
        chosen, told = attention.choose_for_gpu(name, [LAYER], 16, CPU, HOPPER)
        assert (chosen.name, told) == (name, {})


class Timed:
    """A timer that tells what a backend takes: decodes, then prompts, in microseconds."""

    def __init__(self, us: dict[str, tuple[float, float]]) -> None:
        self._left = {name: list(pair) for name, pair in us.items()}

    def __call__(self, call: Any) -> float:
        (backend,) = [
            cell.cell_contents for cell in call.__closure__ if hasattr(cell.cell_contents, "attend")
        ]
        assert isinstance(call(), torch.Tensor)
        return self._left[backend.name].pop(0) / 1e6


@pytest.fixture
def short_steps(monkeypatch: pytest.MonkeyPatch, installed: None) -> None:
    for name, value in (("DECODES", 2), ("CONTEXT", 20), ("PROMPT", 24)):
        monkeypatch.setattr(choice, name, value)
    monkeypatch.setattr(attention, "_fastest", lambda *_: "reference")


# Microseconds of the reference, flashinfer and flash-attn-3: of decodes, and of a prompt.
@pytest.mark.parametrize(("decode", "prefill", "fastest"), [
    ((50.0, 40.0, 60.0), (900.0, 800.0, 700.0), "flashinfer"),
    ((50.0, 40.0, 60.0), (900.0, 800.0, 500.0), "flash-attn-3"),
    ((20.0, 40.0, 60.0), (900.0, 800.0, 700.0), "reference"),
])  # fmt: skip
def test_the_fastest_is_chosen_and_the_figures_are_told(
    decode: tuple[float, ...], prefill: tuple[float, ...], fastest: str, short_steps: None
) -> None:
    us = dict(zip(("reference", *STAND_INS), zip(decode, prefill, strict=True), strict=True))
    chosen, told = attention.choose_for_gpu("auto", [LAYER], 16, CPU, HOPPER, Timed(us))
    assert chosen.name == fastest
    assert told["attention_measured"] == {
        name: {"decode_us": of_decode, "prefill_us": of_prefill}
        for name, (of_decode, of_prefill) in us.items()
    }


def test_who_may_not_be_chosen_is_measured_all_the_same(short_steps: None) -> None:
    us = {"reference": (50.0, 900.0), "flashinfer": (1.0, 1.0), "flash-attn-3": (1.0, 1.0)}
    chosen, told = attention.choose_for_gpu("auto", [LAYER], 16, CPU, HOPPER, Timed(us), among={"reference"})
    assert chosen.name == "reference" and len(told["attention_measured"]) == 3
    left_out = [name for name, found in told["attention_measured"].items() if "left_out" in found]
    assert left_out == ["flashinfer", "flash-attn-3"]


def test_who_fails_or_computes_something_else_is_not_chosen(
    short_steps: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Wrong(Reference):
        name = "wrong"

        def attend(
            self, query: Any, key: Any, value: Any, layer: int, variant: Variant, step: StepContext
        ) -> Any:
            return super().attend(query, key, value, layer, replace(variant, window=9), step)

    class Broken(Reference):
        name = "broken"

        def attend(self, *_: Any) -> Any:
            raise RuntimeError("no kernel image is available\nfor this device")

    right = choice.OPTIONAL["flashinfer"]
    monkeypatch.setattr(attention, "OPTIONAL", {
        "wrong": replace(right, make=Wrong), "broken": replace(right, make=Broken)
    })  # fmt: skip
    chosen, told = attention.choose_for_gpu("auto", [LAYER], 16, CPU, HOPPER, lambda call: 1e-6)
    assert chosen.name == "reference"
    found = told["attention_measured"]
    assert found["wrong"].startswith("differs from the reference by ")
    assert found["broken"] == "fails: no kernel image is available"


def test_without_a_choice_nothing_is_measured() -> None:
    chosen, told = attention.choose_for_gpu("auto", [LAYER], 16, CPU, HOPPER, lambda _: pytest.fail("timed"))
    assert told == {} and chosen.name in ("triton", "reference")


def test_what_layers_ask_for_is_found_by_running_them() -> None:
    layers = {
        kind: asked_by(_switched(tiny(kind, head_dim=8, **config)))
        for kind, config in {
            "gemma2": {
                "sliding_window": 9, "attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 16,
                "layer_types": ["sliding_attention", "full_attention"],
            },
            "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
        }.items()
    }  # fmt: skip
    windowed, full = layers["gemma2"]
    assert windowed == Asked(4, 2, 8, 8, torch.float32, Variant(0.25, 9, 2.0), False)
    assert full == replace(windowed, variant=Variant(0.25, None, 2.0))
    assert [layer.sinks for layer in layers["gpt_oss"]] == [True, True]


def _switched(model: Any) -> Any:
    load._switch_attention(model, "tiny")
    return model


def test_the_device_s_own_timer_times() -> None:
    assert 0 < choice._seconds(lambda: None, CPU) < 1
