"""Parameters counted from configs, against modules that transformers builds without memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tunebatch.models.architecture import ConfigError, architecture
from tunebatch.models.families import FAMILIES
from tunebatch.models.parameters import count_parameters
from tunebatch.models.shapes import SHAPES

# As the repositories' safetensors headers say, tied weights once.
PUBLISHED = {
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "tinyllama-1.1b": 1_100_048_384,
    "smollm2-135m": 134_515_008,
    "mistral-7b": 7_248_023_552,
    "mistral-7b-v0.1": 7_241_732_096,
    "mixtral-8x7b": 46_702_792_704,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-7b": 7_615_616_512,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "qwen3-14b": 14_768_307_200,
    "qwen3-32b": 32_762_123_264,
    "qwen3-30b-a3b": 30_532_122_624,
    "gemma-2-2b": 2_614_341_888,
    "gemma-2-9b": 9_241_705_984,
    "gemma-3-1b": 999_885_952,
    "phi-3-mini": 3_821_079_552,
    "gpt-oss-20b": 20_914_757_184,
    "gpt-oss-120b": 116_829_156_672,
    "gpt2": 124_439_808,
    # Ours, as they were always built.
    "llama-8m": 6_524_160,
    "llama-32m": 31_990_272,
}
SMALL = {
    "vocab_size": 99,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 80,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
OWN_SIZES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 48, "n_layer": 3, "n_head": 4, "n_inner": 80, "n_positions": 64, "vocab_size": 99},
    "opt": {"ffn_dim": 80, "word_embed_proj_dim": 48},
    "mixtral": {"num_local_experts": 5, "num_experts_per_tok": 2},
    "gpt_oss": {"num_local_experts": 5, "num_experts_per_tok": 2, "sliding_window": 8},
    "qwen3_moe": {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
}
CHANGES: list[tuple[str, dict[str, Any]]] = [
    *((kind, {}) for kind in FAMILIES),
    *((kind, {"tie_word_embeddings": True}) for kind in ("llama", "qwen2", "qwen3", "gpt_neox")),
    *((kind, {"tie_word_embeddings": False}) for kind in ("gemma2", "gpt2", "opt", "smollm3")),
    *((kind, {"attention_bias": True}) for kind in ("llama", "qwen3", "gemma3_text", "olmo2")),
    ("llama", {"mlp_bias": True, "head_dim": 20}),
    ("granite", {"mlp_bias": True}),
    ("gpt_neox", {"attention_bias": False}),
    ("starcoder2", {"use_bias": False}),
    ("opt", {"enable_bias": False}),
    ("gpt2", {"n_inner": None}),
    ("qwen3", {"head_dim": 32, "num_key_value_heads": 1}),
    ("mistral", {"sliding_window": None}),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1}),
]


def built(config: Any) -> torch.nn.Module:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def small_config(kind: str, changes: dict[str, Any]) -> Any:
    sizes = {} if kind == "gpt2" else SMALL
    return AutoConfig.for_model(kind, **{**sizes, **OWN_SIZES.get(kind, {}), **changes})


def test_every_shape_has_its_published_size() -> None:
    assert PUBLISHED.keys() == SHAPES.keys()


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_is_counted_as_transformers_builds_it(name: str) -> None:
    shape = SHAPES[name]
    config = AutoConfig.for_model(**shape.config)
    assert parameters(built(config)) == count_parameters(architecture(shape.config)).total == PUBLISHED[name]
    assert type(built(config)).__name__ == shape.config["architectures"][0]


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_is_complete(name: str) -> None:
    """No width or window comes from a default of transformers, so that none of them can change it."""
    sizes, all_said = architecture(SHAPES[name].config), AutoConfig.for_model(**SHAPES[name].config).to_dict()
    assert architecture(all_said | {"dtype": sizes.dtype}) == sizes
    assert sizes.dtype == ("float32" if name == "gpt2" else SHAPES[name].config["dtype"])


@pytest.mark.parametrize(("kind", "changes"), CHANGES, ids=str)
def test_small_models_are_counted_as_transformers_builds_them(kind: str, changes: dict[str, Any]) -> None:
    config = small_config(kind, changes)
    assert count_parameters(architecture(config.to_dict())).total == parameters(built(config))


@pytest.mark.parametrize("kind", FAMILIES)
def test_keys_that_a_config_leaves_out_are_as_transformers_takes_them(kind: str) -> None:
    sparse = {"model_type": kind, "vocab_size": 99} if kind == "gpt2" else {**SMALL, "model_type": kind}
    sparse |= OWN_SIZES.get(kind, {})
    said = AutoConfig.for_model(**sparse).to_dict()
    assert architecture({**sparse, "dtype": "float32"}) == architecture({**said, "dtype": "float32"})


@pytest.mark.parametrize("kind", FAMILIES)
def test_windows_are_where_transformers_has_them(kind: str) -> None:
    config = small_config(kind, {"num_hidden_layers": 7} if kind != "gpt2" else {})
    said = config.to_dict()
    types = getattr(config, "layer_types", None)
    window = getattr(config, "sliding_window", None)
    expected = [window if one == "sliding_attention" else None for one in types or ()]
    if types is None:
        expected = [window] * config.num_hidden_layers
    said.pop("layer_types", None)
    assert list(architecture(said).windows) == expected
    if types is not None:
        assert list(architecture(said | {"layer_types": types[::-1]}).windows) == expected[::-1]


def test_windows_of_the_upper_layers() -> None:
    config = small_config("qwen2", {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1})
    assert architecture(config.to_dict()).windows == (None, 16, 16)


def test_what_a_token_goes_through() -> None:
    dense, experts = (
        count_parameters(architecture(SHAPES[name].config)) for name in ("qwen3-8b", "gpt-oss-20b")
    )
    assert dense.idle_experts == 0 and dense.active == dense.total - dense.embedding
    # Its model card: 3.61 billion, the head counted and the embedding not; the larger one's 5.13.
    assert round(experts.active / 1e9, 2) == 3.61
    larger = count_parameters(architecture(SHAPES["gpt-oss-120b"].config))
    assert round(larger.active / 1e9, 2) == 5.13
    tied = count_parameters(architecture(SHAPES["llama-3.2-1b"].config))
    assert tied.active == tied.total


def config(**changes: Any) -> dict[str, Any]:
    made = {**SMALL, "model_type": "llama", **changes}
    return {key: value for key, value in made.items() if value is not ...}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model_type": ...}, "no model_type"),
        ({"model_type": "t5", "is_encoder_decoder": True}, "t5 is an encoder-decoder"),
        ({"model_type": "mamba"}, "mamba keeps recurrent state"),
        ({"model_type": "lfm2"}, "lfm2 computes attention that a paged kernel does not"),
        ({"model_type": "gemma3", "vision_config": {}}, "gemma3 takes images"),
        ({"model_type": "deepseek_v3"}, "'deepseek_v3' cannot be counted; known: gemma, "),
        ({"hidden_size": ...}, "no hidden_size"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0, must be a whole number from 1"),
        ({"num_hidden_layers": 10**9}, "from 1 to 10000"),
        ({"vocab_size": "many"}, "vocab_size is 'many'"),
        ({"vocab_size": True}, "vocab_size is True"),
        ({"num_key_value_heads": 3}, "must divide the 4 query heads; the nearest is 2"),
        (
            {"num_attention_heads": 7, "num_key_value_heads": 7},
            "hidden_size 48 is no multiple of the 7 heads",
        ),
        ({"dtype": "float8"}, "dtype is 'float8', must be one of float32"),
        ({"model_type": "gemma2", "layer_types": ["full_attention"]}, "must name each of the 3 layers"),
        (
            {"model_type": "mixtral", **OWN_SIZES["mixtral"], "num_experts_per_tok": 6},
            "at most the 5 experts",
        ),
        ({"model_type": "opt", "ffn_dim": 9, "word_embed_proj_dim": 9}, "projected embeddings"),
        ({"model_type": "qwen3_moe", "mlp_only_layers": [1]}, "layers without experts"),
    ],
    ids=str,
)
def test_a_config_that_cannot_be_planned_with(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as refused:
        architecture(config(**changes))
    assert told in str(refused.value) and "\n" not in str(refused.value)
