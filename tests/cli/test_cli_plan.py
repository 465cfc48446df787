"""``tunebatch plan``: what is predicted, from where, and how it refuses."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from tunebatch.cli.plan_lengths import AskedLengths, sequence_lengths
from tunebatch.models import bundled_target

GIB = 2**30
# 128 KiB a token; 80 GiB as the flag says.
LLAMA = ("llama-3.1-8b", "--memory", "80GiB")


@pytest.fixture
def planned(tunebatch: Any) -> Any:
    """What is told of each model, as JSON."""

    def call(*arguments: str) -> list[dict[str, Any]]:
        done = tunebatch("plan", *arguments, "--json")
        assert done.code in (0, 6), done.err
        told = json.loads(done.out)
        assert told["schema"] == "tunebatch.memory_plan.v1"
        return list(told["models"])

    return call


def test_the_arithmetic_of_the_design(planned: Any) -> None:
    (told,) = planned(*LLAMA, "--tokens", "8192")
    predicted = told["predicted"]
    assert told["source"] == "config of meta-llama/Llama-3.1-8B"
    assert predicted["parameters"] == 8_030_261_248 and predicted["weight_bytes"] == 2 * 8_030_261_248
    assert predicted["kv_bytes_per_token"] == 2 * 32 * 8 * 128 * 2
    room = int(80 * GIB * 0.9) - predicted["weight_bytes"] - predicted["activation_bytes"]
    assert predicted["kv_room_bytes"] == room
    assert predicted["num_blocks"] == room // (16 * 131_072)
    assert predicted["batch"] == {"mean": room // GIB, "p95": room // GIB}  # 8192 tokens are a gibibyte
    assert (
        predicted["max_batch_size"] == 56 and predicted["bound"] == "memory" and predicted["decode"] is None
    )
    assert predicted["weight_bytes_by_dtype"]["float32"] == 4 * 8_030_261_248
    half_up = 8_030_261_248 - 2 * 128_256 * 4096 - 65 * 4096
    assert predicted["weight_bytes_by_dtype"]["int4"] == half_up / 2 + 2 * (8_030_261_248 - half_up)


def test_dtypes_of_weights_and_cache(planned: Any) -> None:
    plain, small = (planned(*LLAMA, "--tokens", "8192", *more)[0] for more in ((), ("--kv-dtype", "fp8")))
    assert small["predicted"]["kv_bytes_per_token"] * 2 == plain["predicted"]["kv_bytes_per_token"]
    assert small["predicted"]["batch"]["p95"] in (2 * plain["predicted"]["batch"]["p95"] + n for n in (0, 1))
    (quantized,) = planned(*LLAMA, "--dtype", "int4")
    assert quantized["setting"]["kv_dtype"] == "bfloat16"
    assert "embeddings, norms and head count in 16 bits" in quantized["notes"][0]


def test_the_same_model_with_more_and_fewer_heads(planned: Any) -> None:
    (told,) = planned(*LLAMA, "--tokens", "8192")
    forms = {form["form"]: form for form in told["predicted"]["heads"]}
    assert [forms[name]["factor"] for name in ("MHA", "GQA", "MQA")] == [4.0, 1.0, 0.125]
    own = told["predicted"]["batch"]["p95"]
    assert forms["GQA"]["batch"]["p95"] == own and forms["GQA"]["own"]
    assert forms["MHA"]["batch"]["p95"] == own // 4 and forms["MQA"]["batch"]["p95"] in range(
        8 * own, 8 * own + 8
    )
    (mha,) = planned("llama-2-7b", "--memory", "80GiB")
    assert [form["form"] for form in mha["predicted"]["heads"]] == ["MHA", "MQA"]


def test_lengths_of_a_workload(planned: Any) -> None:
    (chat,) = planned(*LLAMA)
    lengths = chat["predicted"]["lengths"]
    assert (
        lengths["name"] == "chat" and lengths["mean_tokens"] < lengths["p90_tokens"] < lengths["p95_tokens"]
    )
    assert chat["predicted"]["batch"]["mean"] > 2 * chat["predicted"]["batch"]["p95"]
    (fixed,) = planned(*LLAMA, "--prompt-tokens", "100", "--output-tokens", "28")
    assert fixed["predicted"]["lengths"]["mean_tokens"] == 128 == fixed["predicted"]["lengths"]["p95_tokens"]
    assert fixed["predicted"]["lengths"]["name"] == "prompts 100, outputs 28"
    (mixed,) = planned(*LLAMA, "-w", "code", "--output-tokens", "uniform:1-9")
    assert mixed["predicted"]["lengths"]["name"] == "code, outputs uniform:1-9"


def test_long_lengths_are_clipped_and_decoding_sees_half_the_output(planned: Any) -> None:
    asked = AskedLengths(prompt_tokens="uniform:900-2000", output_tokens="40")
    clipped = sequence_lengths(replace(asked, prompt_tokens="lognormal:p50=30,sigma=2"), 1024, 0, "m")
    assert clipped.tokens.max() == 1024 and clipped.tokens.min() < 60
    behind = sequence_lengths(asked, 1024, 100, "m")
    assert behind.tokens.max() <= 924 and "to fit a context of 924 tokens" in behind.notes[0]
    fixed = sequence_lengths(replace(asked, prompt_tokens="60"), 1024, 0, "m")
    assert fixed.mean_context == 80 and (fixed.tokens == 100).all()
    long_outputs_count_more = AskedLengths(prompt_tokens="1", output_tokens="uniform:1-401")
    assert sequence_lengths(long_outputs_count_more, 1024, 0, "m").mean_context == pytest.approx(
        135, rel=0.02
    )


def test_lengths_fit_the_context(planned: Any) -> None:
    (told,) = planned("bundled", "--memory", "1GiB", "-w", "summarize")
    assert told["predicted"]["lengths"]["p95_tokens"] <= 2048
    assert "to fit a context of 2048 tokens" in told["notes"][0]


def test_a_shared_prefix(planned: Any) -> None:
    alone, behind = (
        planned(*LLAMA, "--tokens", "1024", *more)[0] for more in ((), ("--shared-prefix", "7168"))
    )
    assert alone["predicted"]["batch_shared_prefix"] is None
    room = behind["predicted"]["kv_room_bytes"]
    assert behind["predicted"]["batch"]["p95"] == room // GIB
    assert "sequences of 8,192 tokens" in behind["reason"]
    (decoding,) = planned("llama-3.1-8b", "--gpu", "h100", "--tokens", "100", "--shared-prefix", "60")
    assert decoding["predicted"]["decode"]["context_tokens"] == 160
    assert behind["predicted"]["batch_shared_prefix"]["p95"] == (room - 7 * GIB // 8) // (GIB // 8)


def test_layers_with_a_window(planned: Any) -> None:
    (told,) = planned("gpt-oss-20b", "--memory", "80GiB", "--tokens", "4096")
    predicted = told["predicted"]
    assert told["architecture"]["windowed_layers"] == 12
    # Half of the layers keep 128 of 4096 tokens.
    ratio = predicted["batch"]["p95"] / predicted["batch_keeping_all"]["p95"]
    assert ratio == pytest.approx(4096 / (2048 + 64), rel=0.01)
    assert 0.8 * predicted["batch_keeping_all"]["p95"] < predicted["max_batch_size"]
    assert predicted["max_batch_size"] <= predicted["batch_keeping_all"]["p95"]
    assert "12 of 24 layers see 128 tokens back, which bounds their KV" in told["notes"][0]
    (short,) = planned("gemma-2-9b", "--memory", "80GiB", "--tokens", "4096")
    assert short["predicted"]["batch_keeping_all"] is None and "bounds nothing" in short["notes"][0]


def test_where_compute_takes_over(planned: Any) -> None:
    (long,) = planned("llama-3.1-8b", "--gpu", "h100", "--tokens", "4096")
    decode = long["predicted"]["decode"]
    assert decode["compute_bound_batch_weights_only"] == pytest.approx(989 / 3.35, rel=0.01)
    assert decode["compute_bound_batch"] is None
    assert decode["never_compute_bound_from_context_tokens"] == pytest.approx(
        8e9 * 2 / 989e12 / 131072 * 3350e9, rel=0.1
    )
    assert "NVIDIA H100 datasheet" in decode["peaks_source"] and "not measured" in decode["peaks_source"]
    assert "compute none" in long["reason"]
    (short,) = planned("llama-3.1-70b", "--gpu", "h200", "--dtype", "fp8", "--tokens", "128")
    predicted = short["predicted"]
    assert (
        predicted["bound"] == "compute"
        and predicted["batch"]["p95"] > predicted["decode"]["compute_bound_batch"]
    )
    assert 0.8 * predicted["decode"]["compute_bound_batch"] < predicted["max_batch_size"]
    assert "compute binds a decode step" in short["reason"]


def test_peaks_as_given_and_of_float32(planned: Any) -> None:
    given = ("--memory", "80GiB", "--tflops", "100", "--bandwidth", "1000")
    assert planned("llama-3.1-8b", *given)[0]["predicted"]["decode"]["compute_bound_batch_weights_only"] == (
        pytest.approx(100)
    )
    (wide,) = planned("llama-3.2-1b", "--gpu", "h100", "--dtype", "float32")
    assert wide["predicted"]["decode"]["flops_per_s"] == 67e12
    (partly,) = planned("llama-3.2-1b", "--gpu", "H100", "--bandwidth", "3000")
    assert partly["predicted"]["decode"]["bytes_per_s"] == 3e12
    assert partly["predicted"]["decode"]["flops_per_s"] == 989e12
    (less,) = planned("llama-3.2-1b", "--gpu", "h100", "--memory", "40GiB")
    assert less["device"]["memory_bytes"] == 40 * GIB and less["predicted"]["decode"]["bytes_per_s"] == 3350e9


def test_several_side_by_side(tunebatch: Any) -> None:
    done = tunebatch("plan", "llama-3.1-8b", "llama-2-7b", "gemma-3-1b", "--gpu", "h100")
    lines = done.out.splitlines()
    assert done.code == 0 and max(map(len, lines)) < 250
    assert [line.split(" on ")[0] for line in lines[:3]] == ["llama-3.1-8b", "llama-2-7b", "gemma-3-1b"]
    assert all(line.endswith("(predicted)") for line in lines[:3])
    assert lines[4].split() == ["predicted", "llama-3.1-8b", "llama-2-7b", "gemma-3-1b"]
    rows = {line[:50].strip(): line.split()[-6:] for line in lines[5:]}
    assert "if it were MQA: KV of a token" in rows
    assert "4x)" in done.out and "(1/32)" in done.out and "(own)" in done.out
    assert "published peak, not measured" in done.out and "all of it is predicted" in done.out
    assert tunebatch("plan", "llama-2-7b", "-q", "--gpu", "h100").out.count("predicted") == 2


def test_what_does_not_fit(tunebatch: Any, planned: Any) -> None:
    done = tunebatch("plan", "llama-3.1-70b", "--gpu", "h100")
    assert done.code == 6
    assert "weights and activations take 132 GiB, and 71.7 GiB may be used" in done.out
    assert tunebatch("plan", "llama-3.1-70b", "llama-3.1-8b", "--gpu", "h100").code == 0
    (tight,) = planned("llama-3.1-8b", "--memory", "18GiB", "--tokens", "20000")
    assert tight["predicted"]["max_batch_size"] == 0 and tight["predicted"]["kv_room_bytes"] > 0
    assert (
        "has no room for one sequence of 20,000 tokens"
        in tunebatch("plan", "llama-3.1-8b", "--memory", "18GiB", "--tokens", "20000").out
    )


def test_configs_from_files(planned: Any, tmp_path: Path) -> None:
    text = (bundled_target() / "config.json").read_text()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text(text)
    (tmp_path / "other.json").write_text(text)
    said = planned("bundled", "mine", "mine/config.json", "other.json", "--memory", "1GiB")
    assert [one["model"] for one in said] == ["bundled", "mine", "mine", "other"]
    assert len({json.dumps(one["predicted"]) for one in said}) == 1
    assert said[0]["predicted"]["parameters"] == 6_191_520
    assert said[0]["setting"]["dtype"] == "bfloat16"


def test_this_machine(planned: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from tunebatch.measure import environment

    facts: dict[str, Any] = {"gpu": None, "gpu_memory_bytes": None, "memory_bytes": 8 * GIB}
    monkeypatch.setattr(environment, "environment", lambda: facts)
    (cpu,) = planned("bundled")
    assert cpu["device"] == {"name": "this machine's CPU", "memory_bytes": 8 * GIB, "utilization": 0.9}
    assert cpu["setting"]["dtype"] == "float32" == cpu["setting"]["kv_dtype"]
    facts |= {"gpu": "NVIDIA L4", "gpu_memory_bytes": 22 * GIB}
    (gpu,) = planned("bundled")
    assert gpu["device"]["memory_bytes"] == 22 * GIB and gpu["setting"]["dtype"] == "bfloat16"
    assert gpu["predicted"]["decode"]["flops_per_s"] == 121e12
    assert planned("bundled", "--device", "cpu")[0]["device"] == cpu["device"]


def test_a_config_from_the_hub(planned: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def download(model: str, name: str, **_: Any) -> str:
        assert (model, name) == ("some/model", "config.json")
        return str(bundled_target() / "config.json")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    (told,) = planned("some/model", "--memory", "1GiB")
    assert told["model"] == "some/model" and told["predicted"]["parameters"] == 6_191_520


def test_a_hub_that_does_not_answer(tunebatch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def unreachable(*_: Any, **__: Any) -> str:
        raise ConnectionError("no route to the hub. Try again.\nMore of it.")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", unreachable)
    done = tunebatch("plan", "qwen/qwen3-8b")
    assert done.code == 2 and done.err.count("\n") == 1
    assert done.err.endswith("no route to the hub; the named shape qwen3-8b is this model and needs no hub\n")


@dataclass
class Taken:
    parameters: int = 6_191_520
    weight_bytes: int = 24_766_080
    kv_bytes_per_token: int = 10_240
    num_blocks: int = 100
    block_size: int = 16
    dtype: str = "float32"
    device: str = "cpu"
    max_slots: int = 64
    activation_tokens: int = 300
    activation_rows: int = 5
    activation_bytes: int = 2_000_000


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> Taken:
    """What a loaded model is said to take; its decode steps take compute's time from batch 4 on."""
    taken, contexts = Taken(), []
    memory = ModuleType("tunebatch.execute.torch.memory")
    memory.measure_memory = lambda executor, batched_tokens: taken
    steps = ModuleType("tunebatch.execute.torch.decode_steps")

    def decode_step_times(executor: Any, context: int) -> SimpleNamespace:
        contexts.append(context)
        return SimpleNamespace(context=context, step_s={1: 0.010, 2: 0.0101, 4: 0.02, 8: 0.04})

    steps.decode_step_times = decode_step_times
    for module in (memory, steps):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return taken


def test_measured_beside_predicted(tunebatch: Any, planned: Any, loaded: Taken) -> None:
    shown = tunebatch("plan", "bundled", "--measure", "--device", "cpu", "--tokens", "160").out
    told = [
        re.split(r"  +", line.strip())[-4:] for line in shown.splitlines() if line.endswith((" %", " none"))
    ]
    rows = {label: numbers for label, *numbers in told}
    assert rows["parameters"] == ["6,191,520", "6,191,520", "none"]
    assert rows["KV bytes of a token"] == ["10,240", "10,240", "none"]
    assert rows["KV blocks of 16 tokens"][1] == "100"
    assert rows["batch of p95 sequences in them"][1] == "10"
    assert rows["bytes of the activations of a step of 300 tokens"][1] == "2,000,000"
    # The recommendation is of the blocks that there are, not of those that were predicted.
    assert rows["max_batch_size"][1] == "10"
    assert shown.startswith("bundled on this machine's CPU") and "max_batch_size 10 for" in shown
    assert "(from the measured KV room)" in shown.splitlines()[0]
    assert (
        "the measured KV room holds 10 sequences of 160 tokens (p95); measured, compute binds a decode step "
        "from batch 4 on, at 160 tokens of context"
    ) in shown
    assert "what is not called measured is predicted" in shown and "not known without" not in shown
    assert re.search(r"compute binds decoding from batch, at 160 tokens of context +- +4 +-", shown)
    assert "1: 10, 2: 10.1, 4: 20, 8: 40" in shown


def test_measured_as_json(planned: Any, loaded: Taken) -> None:
    (told,) = planned("bundled", "--measure", "--device", "cpu", "--tokens", "160", "--shared-prefix", "160")
    measured = told["measured"]
    assert measured["num_blocks"] == 100 and measured["kv_room_bytes"] == 100 * 16 * 10_240
    assert measured["parameters"] == told["predicted"]["parameters"]
    assert (measured["max_batch_size"], measured["max_batch_size_shared_prefix"]) == (5, 8)
    assert measured["compute_bound_batch"] == 4 and measured["decode"]["context_tokens"] == 320
    loaded.num_blocks = 9
    (small,) = planned("bundled", "--measure", "--device", "cpu", "--tokens", "160")
    assert small["measured"]["max_batch_size"] == 0 < small["predicted"]["max_batch_size"]


def test_a_named_shape_is_measured_with_random_weights(tunebatch: Any, planned: Any, loaded: Taken) -> None:
    shown = tunebatch("plan", "llama-8m", "--measure", "--device", "cpu", "--tokens", "160").out
    assert shown.startswith("llama-8m (random weights) on this machine's CPU")
    assert "(from the measured KV room)" in shown.splitlines()[0]
    assert "\nllama-8m (random weights)  parameters" in shown
    (told,) = planned("llama-8m", "--measure", "--device", "cpu", "--tokens", "160")
    assert told["model"] == "llama-8m (random weights)" and told["measured"]["num_blocks"] == 100
    # Only what is loaded has them.
    (predicted,) = planned("llama-8m", "--device", "cpu", "--tokens", "160")
    assert predicted["model"] == "llama-8m" and "measured" not in predicted


def test_on_this_cpu_the_room_is_what_the_executor_takes(
    planned: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import psutil

    free = SimpleNamespace(available=8 * GIB, total=16 * GIB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
    (told,) = planned("bundled", "--device", "cpu", "--tokens", "2048")
    predicted = told["predicted"]
    assert predicted["kv_room_bytes"] == 512 * 2**20 and predicted["num_blocks"] == 2**29 // (16 * 10_240)
    assert predicted["batch"]["p95"] == 25 and predicted["max_batch_size"] == 24
    assert predicted["left_bytes"] > 13 * GIB
    assert any("on this CPU the executor takes 512 MiB" in note for note in told["notes"])
    free.available = GIB // 2
    (little,) = planned("bundled", "--device", "cpu", "--tokens", "2048")
    assert little["predicted"]["kv_room_bytes"] == (GIB // 2 - little["predicted"]["weight_bytes"]) // 4
    (elsewhere,) = planned("bundled", "--memory", "16GiB", "--dtype", "float32", "--tokens", "2048")
    assert elsewhere["predicted"]["left_bytes"] == 0
    assert not any("CPU" in note for note in elsewhere["notes"])


def test_experts_count_as_they_are_published(tunebatch: Any, planned: Any) -> None:
    (told,) = planned("gpt-oss-120b", "--gpu", "h100")
    assert told["setting"]["dtype"] == "mxfp4" and told["setting"]["kv_dtype"] == "bfloat16"
    # Its model card: a checkpoint of 60.8 GiB; the smaller one's is 12.8 GiB.
    assert round(told["predicted"]["weight_bytes"] / GIB, 1) == 60.8
    (smaller,) = planned("gpt-oss-20b", "--gpu", "h100")
    assert round(smaller["predicted"]["weight_bytes"] / GIB, 1) == 12.8
    assert any("the experts count in MXFP4, as published: 4.25 bits" in note for note in told["notes"])
    assert any("128 tokens back, which bounds their KV" in note for note in told["notes"])
    done = tunebatch("plan", "gpt-oss-120b", "--gpu", "h100")
    assert done.code == 0 and "max_batch_size 48 for chat" in done.out.splitlines()[0]
    (wide,) = planned("gpt-oss-120b", "--gpu", "h100", "--dtype", "bfloat16")
    assert wide["predicted"]["weight_bytes"] == 2 * wide["predicted"]["parameters"]
    assert any("published in mxfp4, here they count in bfloat16" in note for note in wide["notes"])
    # Where nothing fits, the window bounds what is kept all the same.
    assert wide["predicted"]["max_batch_size"] == 0
    assert any("which bounds their KV" in note for note in wide["notes"])


def test_the_format_that_a_config_names(planned: Any, tmp_path: Path) -> None:
    config = json.loads((bundled_target() / "config.json").read_text())
    said: dict[str, dict[str, Any]] = {
        "fp8": {"quant_method": "fp8"},
        "int4": {"quant_method": "gptq", "bits": 4},
        "int8": {"quant_method": "awq", "bits": 8},
        "hqq": {"quant_method": "hqq"},
    }
    for name, quantization in said.items():
        (tmp_path / f"{name}.json").write_text(json.dumps({**config, "quantization_config": quantization}))
    told = planned(*(f"{name}.json" for name in said), "--memory", "1GiB")
    assert [one["setting"]["dtype"] for one in told] == ["fp8", "int4", "int8", "bfloat16"]
    assert any("published in hqq, here they count in bfloat16" in note for note in told[3]["notes"])


def test_several_models_get_the_same_lengths(tunebatch: Any, planned: Any) -> None:
    long, short = planned("llama-3.1-8b", "llama-2-7b", "--gpu", "h100", "--shared-prefix", "2000")
    assert long["predicted"]["lengths"] == short["predicted"]["lengths"]
    (alone,) = planned("llama-2-7b", "--gpu", "h100", "--shared-prefix", "2000")
    assert alone["predicted"] == short["predicted"]
    (longer,) = planned("llama-3.1-8b", "--gpu", "h100", "--shared-prefix", "2000")
    assert longer["predicted"]["lengths"]["p95_tokens"] > long["predicted"]["lengths"]["p95_tokens"]
    told = "all models get the lengths that fit the 4,096 tokens of llama-2-7b"
    assert any(told in note for note in long["notes"]) and not any(told in n for n in alone["notes"])
    # 128 KiB and 512 KiB a token of the same length, in rooms of about the same size.
    assert 3.5 < long["predicted"]["batch"]["p95"] / short["predicted"]["batch"]["p95"] < 4
    same = planned("llama-3.1-8b", "llama-2-7b", "--gpu", "h100", "--tokens", "100")
    assert not any("all models" in note for one in same for note in one["notes"])


def test_a_batch_for_a_prefix_that_is_shared(tunebatch: Any, planned: Any) -> None:
    (told,) = planned("llama-2-7b", "--gpu", "h100", "--shared-prefix", "2000")
    predicted = told["predicted"]
    assert (
        predicted["max_batch_size"] <= predicted["batch"]["p95"] < predicted["max_batch_size_shared_prefix"]
    )
    shared = predicted["batch_shared_prefix"]["p95"]
    assert 0.8 * shared < predicted["max_batch_size_shared_prefix"] <= shared
    shown = tunebatch("plan", "llama-2-7b", "--gpu", "h100", "--shared-prefix", "2000").out
    assert "max_batch_size 32 for chat (80 with the prefix stored once)" in shown.splitlines()[0]
    assert re.search(r"\nmax_batch_size, shared tokens stored once +80\n", shown)
    assert "stored once" not in tunebatch("plan", "llama-2-7b", "--gpu", "h100").out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            ("lama-3.1-8b",),
            "no such folder, file or named shape, and no hub id (owner/name); did you mean 'llama-3.1-8b'?",
        ),
        (("./nowhere",), "./nowhere: no such folder"),
        (("empty",), "empty: no config.json in this folder"),
        (("",), "an empty model name; the nearest valid value is 'bundled'"),
        (("broken.json",), "broken.json: not JSON"),
        (("list.json",), "list.json: must be a JSON object"),
        (("t5.json",), "t5: t5 is an encoder-decoder; only decoders can be served"),
        (("part.json",), "part: no hidden_size in the config"),
        ((*LLAMA, "--gpu", "h10"), "--gpu 'h10': not in the table; did you mean 'h100'?"),
        (("gpt2", "--memory", "80"), "--memory '80' has no unit; did you mean 80GiB?"),
        (("gpt2", "--memory", "8 parsec"), "has the unknown unit 'parsec'"),
        (("gpt2", "--memory", "much"), "--memory 'much': not a size; write it like 80GiB"),
        (("gpt2", "--memory", "0GiB"), "no memory is that size"),
        ((*LLAMA, "--utilization", "1.5"), "--utilization 1.5: must be above 0 and at most 1"),
        ((*LLAMA, "--utilization", "nan"), "--utilization nan: must be above 0"),
        ((*LLAMA, "--tflops", "10"), "give --bandwidth too, or --gpu"),
        ((*LLAMA, "--bandwidth", "10"), "give --tflops too, or --gpu"),
        ((*LLAMA, "--tflops", "0"), "--tflops 0: must be above 0"),
        ((*LLAMA, "--device", "cpu"), "--device is of this machine"),
        ((*LLAMA, "--dtype", "float8"), "--dtype 'float8': unknown dtype; did you mean 'float"),
        ((*LLAMA, "--kv-dtype", "int4"), "--kv-dtype 'int4': unknown dtype; did you mean 'int8'?"),
        ((*LLAMA, "-w", "chats"), "--workload 'chats': unknown workload; did you mean 'chat'?"),
        ((*LLAMA, "-w", "chat", "--tokens", "9"), "--tokens is the length of every sequence"),
        ((*LLAMA, "--tokens", "1"), "--tokens 1: must be at least 2"),
        ((*LLAMA, "--tokens", "200000"), "llama-3.1-8b has a context of 131072 tokens; at most 131072"),
        (
            ("gpt2", "--memory", "1GiB", "--shared-prefix", "1023"),
            "gpt2 has a context of 1024 tokens; at most 1022",
        ),
        ((*LLAMA, "--shared-prefix", "-1"), "--shared-prefix -1: must be at least 0"),
        ((*LLAMA, "--block-size", "0"), "--block-size 0: must be at least 1"),
        ((*LLAMA, "--prompt-tokens", "16-256"), "--prompt-tokens '16-256': a range needs its law"),
        ((*LLAMA, "--dtype", "mxfp4"), "--dtype mxfp4: is of experts, and llama-3.1-8b has none"),
        (
            ("bare.json", "--measure"),
            "bare.json: a config without weights cannot be measured; give a folder, a hub id, 'bundled' or a "
            "named shape",
        ),
        (("bundled", "--measure", "--weights", "1GiB"), "--measure weighs the weights itself"),
        (("bundled", "--measure", "--gpu", "h100"), "--measure is of this machine"),
        (("bundled", "--measure", "--dtype", "fp8"), "--measure loads float32, bfloat16 or float16, not fp8"),
        (("bundled", "--measure", "--kv-dtype", "fp8"), "leave out --kv-dtype"),
        ((), "Missing argument 'MODEL...'"),
    ],
    ids=str,
)
def test_refusals_are_one_line(tunebatch: Any, tmp_path: Path, arguments: tuple[str, ...], told: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "bare.json").write_text((bundled_target() / "config.json").read_text())
    (tmp_path / "t5.json").write_text('{"model_type": "t5", "is_encoder_decoder": true}')
    (tmp_path / "part.json").write_text('{"model_type": "llama", "num_hidden_layers": 2}')
    done = tunebatch("plan", *arguments)
    assert done.code == 2 and told in done.err
    assert done.out == "" and done.err.count("\n") == 1 and done.err.startswith("error: ")


def test_cuda_where_there_is_none(tunebatch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from tunebatch.measure import environment

    nothing = {"gpu": None, "gpu_memory_bytes": None, "memory_bytes": GIB}
    monkeypatch.setattr(environment, "environment", lambda: nothing)
    done = tunebatch("plan", "gpt2", "--device", "cuda")
    assert done.code == 2 and "no driver names a GPU here" in done.err
    assert "unknown device 'tpu'" in tunebatch("plan", "gpt2", "--device", "tpu").err


def test_help_names_what_there_is_and_loads_nothing_heavy() -> None:
    from tunebatch.measure.memory_plan import KV_BYTES, WEIGHT_BYTES
    from tunebatch.workload.named import NAMED

    code = (
        "import sys; from tunebatch.cli.main import run_command; "
        "run_command(['plan', '--help']); print(sorted({'torch', 'numpy', 'rich'} & set(sys.modules)))"
    )
    environ = {**os.environ, "COLUMNS": "80"}
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environ
    )
    *lines, loaded = shown.stdout.splitlines()
    assert loaded == "[]" and max(map(len, lines)) <= 80
    assert {*KV_BYTES, *WEIGHT_BYTES, *NAMED, "h100", "bundled"} <= set(re.findall(r"[\w-]+", shown.stdout))
