"""What loaded models take is what was predicted from their configs."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tunebatch.execute.torch.decode_steps import decode_step_times
from tunebatch.execute.torch.load import load_executor, serve
from tunebatch.execute.torch.memory import measure_memory
from tunebatch.measure.kv_memory import KvLayout, SequenceLengths
from tunebatch.measure.memory_plan import Device, MemoryPlan, Setting, activation_bytes, plan_memory
from tunebatch.models import bundled_target
from tunebatch.models.architecture import architecture
from tunebatch.models.parameters import count_parameters

SMALL: dict[str, Any] = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
KINDS: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": True},
    "qwen3": {"head_dim": 16, "num_key_value_heads": 1},
    "gemma3_text": {"head_dim": 8, "sliding_window": 16, "query_pre_attn_scalar": 8},
    "gpt_neox": {},
    "mixtral": {"num_local_experts": 3},
}


def planned(config: dict[str, Any], dtype: str) -> MemoryPlan:
    lengths = SequenceLengths("any", np.array([100]), 100.0)
    model, device = architecture(config), Device("d", 2**30, 0.9)
    return plan_memory("m", model, count_parameters(model), device, lengths, Setting(dtype, dtype))


def test_the_bundled_model_takes_what_was_predicted() -> None:
    config = json.loads((bundled_target() / "config.json").read_text())
    taken = measure_memory(load_executor("bundled", device="cpu", backend="reference", num_blocks=64))
    plan = planned(config, "float32")
    assert (taken.dtype, taken.device, taken.num_blocks) == ("float32", "cpu", 64)
    assert taken.parameters == plan.parameters.total
    assert taken.weight_bytes == plan.weight_bytes
    assert taken.kv_bytes_per_token == plan.layout.bytes_per_token


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_other_architectures_do_too(kind: str, dtype: str) -> None:
    config = AutoConfig.for_model(kind, **{**SMALL, **KINDS[kind]})
    torch.manual_seed(0)
    network = (
        AutoModelForCausalLM.from_config(config, attn_implementation="eager").to(getattr(torch, dtype)).eval()
    )
    taken = measure_memory(serve(network, name=kind, backend="reference", num_blocks=8))
    plan = planned(config.to_dict(), dtype)
    assert (taken.parameters, taken.weight_bytes) == (plan.parameters.total, plan.weight_bytes)
    # A cache with one block table keeps what lies beyond a window too.
    assert taken.kv_bytes_per_token == plan.layout.keeping_all().bytes_per_token


def test_pools_are_as_large_as_the_plan_has_their_blocks() -> None:
    config = AutoConfig.for_model("llama", **SMALL)
    network = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    executor = serve(network, name="llama", backend="reference", num_blocks=8)
    measure_memory(executor)
    pools = [pool for pair in executor.cache.layers.values() for pool in pair]
    layout = KvLayout(2, 8, (None, None), 4)
    assert sum(pool.numel() * pool.element_size() for pool in pools) == 8 * layout.bytes_per_block


ACTIVE: dict[str, dict[str, Any]] = {
    "llama": {},
    "phi3": {},
    "gpt_neox": {},
    "gemma2": {"head_dim": 32},
    "mixtral": {"num_local_experts": 4},
    "gpt_oss": {"num_local_experts": 4, "head_dim": 32, "sliding_window": 64},
    "qwen3_moe": {"num_experts": 8, "num_experts_per_tok": 4, "moe_intermediate_size": 128, "head_dim": 32},
}


@pytest.mark.parametrize(
    ("kind", "backend"), [("llama", "compiled"), *((kind, "reference") for kind in ACTIVE)]
)
def test_activations_are_at_most_a_little_less_than_predicted(kind: str, backend: str) -> None:
    sizes = {**SMALL, "hidden_size": 256, "intermediate_size": 768, "num_attention_heads": 8}
    config = AutoConfig.for_model(kind, **{**sizes, **ACTIVE[kind], "max_position_embeddings": 512})
    network = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    executor = serve(network, name=kind, backend=backend, num_blocks=20)
    taken = measure_memory(executor, 256)
    assert taken.activation_tokens == 256 and taken.activation_rows == 4
    predicted = activation_bytes(architecture(config.to_dict()), 256, 4)
    assert 0.98 < predicted / taken.activation_bytes < 1.5


def test_decode_steps_at_growing_batch() -> None:
    config = AutoConfig.for_model("llama", **SMALL)
    network = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    executor = serve(network, name="llama", backend="reference", num_blocks=25, max_slots=8)
    measure_memory(executor)
    times = decode_step_times(executor, 40, budget_s=60.0)
    # With the steps that are timed a sequence takes three blocks, and 25 hold eight such.
    assert times.context == 40 and list(times.step_s) == [1, 2, 4, 8]
    assert all(seconds > 0 for seconds in times.step_s.values())
    assert list(decode_step_times(executor, 1000, budget_s=60.0).step_s) == [1, 2]
    assert list(decode_step_times(executor, 40, budget_s=0.0).step_s) == [1]
