"""``tunebatch plan`` of models whose parameters do not follow from their sizes: published configs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

DEEPSEEK_V3 = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "auto_map": {"AutoModelForCausalLM": "modeling_deepseek.DeepseekV3ForCausalLM"},
    "first_k_dense_replace": 3,
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "kv_lora_rank": 512,
    "max_position_embeddings": 163840,
    "model_type": "deepseek_v3",
    "moe_intermediate_size": 2048,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_attention_heads": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 61,
    "num_key_value_heads": 128,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]},
    "torch_dtype": "bfloat16",
    "v_head_dim": 128,
    "vocab_size": 129280,
}
FALCON_7B = {
    "model_type": "falcon",
    "hidden_size": 4544,
    "num_attention_heads": 71,
    "num_hidden_layers": 32,
    "multi_query": True,
    "torch_dtype": "bfloat16",
    "vocab_size": 65024,
}
FALCON_40B = {
    "model_type": "falcon",
    "hidden_size": 8192,
    "num_attention_heads": 128,
    "num_hidden_layers": 60,
    "num_kv_heads": 8,
    "new_decoder_architecture": True,
    "torch_dtype": "bfloat16",
    "vocab_size": 65024,
}
LLAVA_7B = {
    "model_type": "llava",
    "text_config": {"model_type": "llama", "max_position_embeddings": 4096, "vocab_size": 32064},
    "torch_dtype": "float16",
    "vision_config": {"model_type": "clip_vision_model", "hidden_size": 1024, "num_attention_heads": 16},
}
GEMMA_3_4B = {
    "model_type": "gemma3",
    "text_config": {
        "model_type": "gemma3_text",
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "num_hidden_layers": 34,
        "sliding_window": 1024,
    },
    "torch_dtype": "bfloat16",
    "vision_config": {"model_type": "siglip_vision_model"},
}
QWEN2_VL_2B = {
    "model_type": "qwen2_vl",
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "max_position_embeddings": 32768,
    "num_attention_heads": 12,
    "num_hidden_layers": 28,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "vision_config": {"depth": 32, "embed_dim": 1280, "hidden_size": 1536},
    "vocab_size": 151936,
}
MYSTERY = {
    "model_type": "mystery",
    "hidden_size": 4096,
    "max_position_embeddings": 4096,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "torch_dtype": "bfloat16",
    "vocab_size": 32000,
}
Planned = Callable[..., dict[str, Any]]


@pytest.fixture
def planned(tunebatch: Any, tmp_path: Path) -> Planned:
    """What is told of one config, as JSON."""

    def call(config: dict[str, Any], *arguments: str) -> dict[str, Any]:
        (tmp_path / "model.json").write_text(json.dumps(config))
        done = tunebatch("plan", "model.json", "--memory", "80GiB", *arguments, "--json")
        assert done.code in (0, 6), done.err
        (told,) = json.loads(done.out)["models"]
        return dict(told)

    return call


@pytest.mark.parametrize(
    ("config", "kv_bytes_per_token", "parameters"),
    [
        # Model card: 671 billion.
        (DEEPSEEK_V3, 61 * (512 + 64) * 2, 671_026_404_352),
        (FALCON_7B, 2 * 32 * 1 * 64 * 2, 6_921_720_704),
        (FALCON_40B, 2 * 60 * 8 * 64 * 2, None),
        # Llama-2-7B, and 64 more tokens in embedding and head.
        (LLAVA_7B, 2 * 32 * 32 * 128 * 2, 6_738_415_616 + 2 * 64 * 4096),
        # Model card of the whole: 4.30 billion, of which the encoder of images has 0.42.
        (GEMMA_3_4B, 2 * 34 * 4 * 256 * 2, 3_880_263_168),
        # Qwen2-1.5B.
        (QWEN2_VL_2B, 2 * 28 * 2 * 128 * 2, 1_543_714_304),
    ],
    ids=["deepseek-v3", "falcon-7b", "falcon-40b", "llava-1.5-7b", "gemma-3-4b", "qwen2-vl-2b"],
)
def test_published_configs(
    planned: Planned, config: dict[str, Any], kv_bytes_per_token: int, parameters: int | None
) -> None:
    predicted = planned(config, "--dtype", "bfloat16")["predicted"]
    assert predicted["kv_bytes_per_token"] == kv_bytes_per_token
    assert predicted["parameters"] == (parameters or predicted["parameters"])
    assert predicted["weight_bytes"] == 2 * predicted["parameters"]


def test_a_latent_cache_is_told_of(planned: Planned) -> None:
    told = planned(DEEPSEEK_V3, "--memory", "1TiB", "--tflops", "1000", "--bandwidth", "4000")
    predicted = told["predicted"]
    assert told["architecture"]["latent_width"] == 576 and told["setting"]["dtype"] == "fp8"
    assert round(predicted["active_parameters"] / 1e9) == 37  # its model card
    assert any("counts in the latent layout, 512 + 64 numbers of a token" in note for note in told["notes"])
    # 2 x 128 heads x 192 numbers, against 576.
    assert any("would be 85.3 times as many" in note for note in told["notes"])
    assert predicted["heads"] == [] and predicted["decode"]["context_tokens"] > 0


def test_only_the_language_model_counts(planned: Planned) -> None:
    told = planned(LLAVA_7B)
    assert told["architecture"]["model_type"] == "llama" and told["setting"]["dtype"] == "float16"
    assert any("only the language model (llama) of this llava is counted" in note for note in told["notes"])
    # An encoder that transformers does not take is none of its language model's business.
    odd = planned(LLAVA_7B | {"vision_config": {"hidden_size": 1024, "num_attention_heads": 12}})
    assert odd["predicted"] == told["predicted"]
    assert planned(GEMMA_3_4B)["architecture"]["windowed_layers"] == 29
    assert any("of this qwen2_vl is counted" in note for note in planned(QWEN2_VL_2B)["notes"])
    assert not any("language model" in note for note in planned(FALCON_7B)["notes"])


def test_weights_as_the_user_has_them(planned: Planned, tunebatch: Any) -> None:
    told = planned(MYSTERY, "--weights", "14GiB")
    predicted = told["predicted"]
    assert predicted["kv_bytes_per_token"] == 2 * 32 * 8 * 128 * 2
    assert predicted["weight_bytes"] == 14 * 2**30 and predicted["weight_bytes_given"]
    assert predicted["kv_room_bytes"] == 72 * 2**30 - 14 * 2**30 - predicted["activation_bytes"]
    assert predicted["parameters"] is predicted["active_parameters"] is predicted["decode"] is None
    assert predicted["max_batch_size"] > 0 and "its parameters are not counted" in told["reason"]
    assert any("transformers does not know model_type 'mystery'" in note for note in told["notes"])
    shown = tunebatch("plan", "model.json", "--memory", "80GiB", "--weights", "14GiB").out
    assert "14.0 GiB (as given)" in shown
    known = planned(FALCON_7B, "--weights", "5GiB")["predicted"]
    assert known["weight_bytes"] == 5 * 2**30 and known["parameters"] == 6_921_720_704


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            (),
            "model: KV of a token is 128 KiB in bfloat16 (predicted), but the parameters of model_type "
            "'mystery' cannot be counted; say what its weights take, such as --weights 14GiB",
        ),
        (("--weights", "14"), "--weights '14' has no unit; did you mean 14GiB?"),
        (("llama-2-7b", "--weights", "14GiB"), "--weights 14GiB: is of one model; plan the 2 one by one"),
    ],
    ids=str,
)
def test_refusals_are_one_line(tunebatch: Any, tmp_path: Path, arguments: tuple[str, ...], told: str) -> None:
    (tmp_path / "model.json").write_text(json.dumps(MYSTERY))
    done = tunebatch("plan", "model.json", "--memory", "80GiB", *arguments)
    assert done.code == 2 and told in done.err
    assert done.out == "" and done.err.count("\n") == 1 and done.err.startswith("error: ")
