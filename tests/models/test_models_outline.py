"""KV layouts read from configs, against the caches that transformers fills; all on the meta device."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache

from tunebatch.measure.kv_memory import KvLayout
from tunebatch.models.architecture import Architecture, ConfigError, Latent
from tunebatch.models.built_parameters import built_parameters
from tunebatch.models.language_model import LanguageModel, language_model
from tunebatch.models.outline import outline

SMALL = {
    "vocab_size": 99,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 80,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LATENT = {
    "num_key_value_heads": 4,
    "head_dim": 4,
    "kv_lora_rank": 12,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}
FALCON = {"vocab_size": 99, "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
KINDS: list[tuple[str, dict[str, Any]]] = [
    ("falcon", FALCON),
    ("falcon", {**FALCON, "multi_query": False}),
    ("gpt_bigcode", {"n_embd": 48, "n_layer": 3, "n_head": 4, "vocab_size": 99}),
    ("gptj", {"n_embd": 48, "n_layer": 3, "n_head": 4, "rotary_dim": 4, "vocab_size": 99}),
    ("bloom", {"hidden_size": 48, "n_layer": 3, "n_head": 4, "seq_length": 64, "vocab_size": 99}),
    ("mpt", {"d_model": 48, "n_layers": 3, "n_heads": 4, "max_seq_len": 64, "vocab_size": 99}),
    *((kind, SMALL) for kind in ("cohere", "cohere2", "glm4", "olmo3", "phi", "stablelm", "helium")),
    ("youtu", SMALL | LATENT),
    ("minicpm3", SMALL | LATENT),
]


def read(kind: str, **keys: Any) -> tuple[LanguageModel, Architecture]:
    model = language_model({"model_type": kind, **keys})
    return model, outline(model.config)


@pytest.mark.parametrize(("kind", "keys"), KINDS, ids=lambda one: one if isinstance(one, str) else "")
def test_a_cache_is_sized_as_transformers_fills_it(kind: str, keys: dict[str, Any]) -> None:
    model, sizes = read(kind, **keys)
    with torch.device("meta"), torch.no_grad():
        network = AutoModelForCausalLM.from_config(model.made).eval()
        cache = DynamicCache(config=model.made)
        network(input_ids=torch.zeros((1, 5), dtype=torch.long), past_key_values=cache, use_cache=True)
    kept = sum(one.numel() for layer in cache.layers for one in (layer.keys, layer.values))
    layout = KvLayout(sizes.kv_heads, sizes.head_dim, sizes.windows, 1, 1, sizes.latent)
    assert layout.bytes_per_token * 5 == kept
    assert sizes.windows == tuple(getattr(layer, "sliding_window", None) for layer in cache.layers)
    counted = built_parameters(model, sizes)
    assert counted is not None
    assert counted.total == sum(parameter.numel() for parameter in network.parameters())


def test_newer_falcons_have_a_number_of_heads() -> None:
    new = {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2}
    assert read("falcon", **new)[1].kv_heads == 2
    assert read("falcon", **FALCON)[1].kv_heads == 1
    assert read("falcon", **FALCON, multi_query=False)[1].kv_heads == 4


def test_a_latent_cache() -> None:
    sizes = read("deepseek_v3", **(SMALL | LATENT))[1]
    assert sizes.latent == Latent(rank=12, rope=4)
    layout = KvLayout(sizes.kv_heads, sizes.head_dim, sizes.windows, 2, 16, sizes.latent)
    assert layout.bytes_per_token == 3 * (12 + 4) * 2
    # A query of 16 numbers with the latent, and the weighted sum of its first 12.
    assert layout.products == 16 + 12


def test_what_experts_and_head_take() -> None:
    keys = {"n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 20, "n_group": 1}
    model, sizes = read("deepseek_v3", **(SMALL | LATENT), **keys, topk_group=1, first_k_dense_replace=1)
    counted = built_parameters(model, sizes)
    assert counted is not None
    assert counted.experts == 2 * 8 * 3 * 64 * 20 and counted.idle_experts == counted.experts * 6 // 8
    assert counted.embedding == counted.head == 99 * 64 and counted.tied_head == 0
    tied, sizes = read("cohere", **SMALL)
    counted = built_parameters(tied, sizes)
    assert counted is not None and (counted.head, counted.tied_head) == (0, 99 * 64)


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"model_type": "bert"}, "says that it is no decoder"),
        ({"model_type": "mystery", "architectures": ["MysteryForMaskedLM"]}, "is no language model"),
        ({"model_type": "bart"}, "bart is an encoder-decoder"),
        ({"model_type": "gemma3n"}, "is not known: its config has num_kv_shared_layers"),
        ({"model_type": "gemma4"}, "is not known: its layers differ in"),
        ({"model_type": "deepseek_v32"}, "is not known: its config has index_head_dim"),
        ({"model_type": "mystery", "layer_types": ["linear_attention"]}, "its config has linear_attention"),
        ({"model_type": "mystery", **SMALL, "kv_lora_rank": 0}, "kv_lora_rank of this mystery is 0"),
        ({"model_type": "mimo_v2_flash"}, "is not known: its config has v_head_dim"),
        ({"model_type": "mystery"}, "no num_hidden_layers in the config"),
    ],
    ids=str,
)
def test_what_has_no_known_layout(keys: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as refused:
        outline(language_model(keys).config)
    assert told in str(refused.value) and "\n" not in str(refused.value)
