"""Published architectures by name: their configs, as data.

Each is the ``config.json`` of the Hugging Face repository that it names, in the keys of transformers 5
(``rope_parameters``, ``dtype``), without what only concerns training or text generation. Whoever builds a
model from one gets the published layers, heads and widths; the weights are not here. Two small Llamas of our
own stand beside them, for machines without a GPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Config = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Shape:
    """A published architecture.

    Attributes:
        source: The Hugging Face repository whose config it is, or that it is ours.
        config: In Hugging Face's keys.
        note: What the config alone does not tell.
    """

    source: str
    config: Config
    note: str = ""


def _llama(
    hidden: int, layers: int, heads: int, kv_heads: int, intermediate: int, **changed: Any
) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": hidden // heads,
        "intermediate_size": intermediate,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
        **changed,
    }


def _llama3(
    hidden: int, layers: int, heads: int, kv_heads: int, intermediate: int, rope_factor: float, **changed: Any
) -> dict[str, Any]:
    rope = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": rope_factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    ids = {"bos_token_id": 128000, "eos_token_id": 128001}
    sizes = {"vocab_size": 128256, "max_position_embeddings": 131072}
    return _llama(
        hidden, layers, heads, kv_heads, intermediate, rope_parameters=rope, **sizes, **ids, **changed
    )


def _llama2(hidden: int, layers: int, heads: int, intermediate: int, **changed: Any) -> dict[str, Any]:
    fixed = {"vocab_size": 32000, "max_position_embeddings": 4096, "dtype": "float16", **_IDS_1_2}
    return _llama(
        hidden, layers, heads, heads, intermediate, rope_parameters=_rope(10000.0), **(fixed | changed)
    )


def _mistral(**changed: Any) -> dict[str, Any]:
    return {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 14336,
        "hidden_act": "silu",
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
        **_IDS_1_2,
        **changed,
    }


def _qwen2(
    hidden: int, layers: int, heads: int, kv_heads: int, intermediate: int, **changed: Any
) -> dict[str, Any]:
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": intermediate,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_parameters": _rope(1000000.0),
        "use_sliding_window": False,
        "bos_token_id": 151643,
        "eos_token_id": 151643,
        "dtype": "bfloat16",
        **changed,
    }


def _qwen3(
    hidden: int, layers: int, heads: int, kv_heads: int, intermediate: int, **changed: Any
) -> dict[str, Any]:
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": 128,
        "intermediate_size": intermediate,
        "vocab_size": 151936,
        "hidden_act": "silu",
        "attention_bias": False,
        "max_position_embeddings": 40960,
        "rms_norm_eps": 1e-6,
        "rope_parameters": _rope(1000000.0),
        "use_sliding_window": False,
        "tie_word_embeddings": False,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "dtype": "bfloat16",
        **changed,
    }


def _gemma2(
    hidden: int, layers: int, heads: int, kv_heads: int, intermediate: int, head_dim: int, query_scale: int
) -> dict[str, Any]:
    return {
        "architectures": ["Gemma2ForCausalLM"],
        "model_type": "gemma2",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "intermediate_size": intermediate,
        "vocab_size": 256000,
        "hidden_activation": "gelu_pytorch_tanh",
        "attention_bias": False,
        "max_position_embeddings": 8192,
        "sliding_window": 4096,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "query_pre_attn_scalar": query_scale,
        "rms_norm_eps": 1e-6,
        "rope_parameters": _rope(10000.0),
        "tie_word_embeddings": True,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "pad_token_id": 0,
        "dtype": "bfloat16",
    }


def _gpt_oss(layers: int, experts: int) -> dict[str, Any]:
    return {
        "architectures": ["GptOssForCausalLM"],
        "model_type": "gpt_oss",
        "hidden_size": 2880,
        "num_hidden_layers": layers,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "intermediate_size": 2880,
        "num_local_experts": experts,
        "num_experts_per_tok": 4,
        "vocab_size": 201088,
        "hidden_act": "silu",
        "swiglu_limit": 7.0,
        "attention_bias": True,
        "max_position_embeddings": 131072,
        "sliding_window": 128,
        "layer_types": ["sliding_attention", "full_attention"] * (layers // 2),
        "rms_norm_eps": 1e-5,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 150000.0,
            "factor": 32.0,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": False,
            "original_max_position_embeddings": 4096,
        },
        "tie_word_embeddings": False,
        "eos_token_id": 200002,
        "pad_token_id": 199999,
        "quantization_config": _MXFP4,
        "dtype": "bfloat16",
    }


def _rope(theta: float) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": theta}


_IDS_1_2 = {"bos_token_id": 1, "eos_token_id": 2}
_OWN = "TuneBatch's own"
_SMALL: dict[str, Any] = {"max_position_embeddings": 2048, "rope_parameters": _rope(10000.0), **_IDS_1_2}
_MXFP4 = {
    "quant_method": "mxfp4",
    "modules_to_not_convert": [
        "model.layers.*.self_attn",
        "model.layers.*.mlp.router",
        "model.embed_tokens",
        "lm_head",
    ],
}
_MIXTRAL = {
    "architectures": ["MixtralForCausalLM"],
    "model_type": "mixtral",
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
}
_QWEN3_MOE = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 768,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
}
_GEMMA3_1B = {
    "architectures": ["Gemma3ForCausalLM"],
    "model_type": "gemma3_text",
    "hidden_size": 1152,
    "num_hidden_layers": 26,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 256,
    "intermediate_size": 6912,
    "vocab_size": 262144,
    "hidden_activation": "gelu_pytorch_tanh",
    "attention_bias": False,
    "max_position_embeddings": 32768,
    "sliding_window": 512,
    "layer_types": ["full_attention" if layer % 6 == 5 else "sliding_attention" for layer in range(26)],
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"sliding_attention": _rope(10000.0), "full_attention": _rope(1000000.0)},
    "tie_word_embeddings": True,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "dtype": "bfloat16",
}
_PHI3_MINI = {
    "architectures": ["Phi3ForCausalLM"],
    "model_type": "phi3",
    "hidden_size": 3072,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "intermediate_size": 8192,
    "vocab_size": 32064,
    "hidden_act": "silu",
    "attention_bias": False,
    "max_position_embeddings": 4096,
    "original_max_position_embeddings": 4096,
    "sliding_window": 2047,
    "rms_norm_eps": 1e-5,
    "rope_parameters": _rope(10000.0),
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 32000,
    "pad_token_id": 32000,
    "dtype": "bfloat16",
}
_GPT2 = {
    "architectures": ["GPT2LMHeadModel"],
    "model_type": "gpt2",
    "n_embd": 768,
    "n_layer": 12,
    "n_head": 12,
    "n_inner": None,
    "n_positions": 1024,
    "vocab_size": 50257,
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "bos_token_id": 50256,
    "eos_token_id": 50256,
}

SHAPES: dict[str, Shape] = {
    "llama-3.1-8b": Shape("meta-llama/Llama-3.1-8B", _llama3(4096, 32, 32, 8, 14336, 8.0)),
    "llama-3.1-70b": Shape("meta-llama/Llama-3.1-70B", _llama3(8192, 80, 64, 8, 28672, 8.0)),
    "llama-3.2-1b": Shape(
        "meta-llama/Llama-3.2-1B", _llama3(2048, 16, 32, 8, 8192, 32.0, tie_word_embeddings=True)
    ),
    "llama-3.2-3b": Shape(
        "meta-llama/Llama-3.2-3B", _llama3(3072, 28, 24, 8, 8192, 32.0, tie_word_embeddings=True)
    ),
    "llama-2-7b": Shape("meta-llama/Llama-2-7b-hf", _llama2(4096, 32, 32, 11008)),
    "llama-2-13b": Shape("meta-llama/Llama-2-13b-hf", _llama2(5120, 40, 40, 13824)),
    "tinyllama-1.1b": Shape(
        "TinyLlama/TinyLlama-1.1B-Chat-v1.0",
        _llama(
            2048, 22, 32, 4, 5632, vocab_size=32000, max_position_embeddings=2048,
            rope_parameters=_rope(10000.0), **_IDS_1_2,
        ),
    ),
    "smollm2-135m": Shape(
        "HuggingFaceTB/SmolLM2-135M",
        _llama(
            576, 30, 9, 3, 1536, vocab_size=49152, max_position_embeddings=8192, tie_word_embeddings=True,
            rope_parameters=_rope(100000.0), bos_token_id=0, eos_token_id=0,
        ),
    ),
    "llama-8m": Shape(
        _OWN,
        _llama(256, 6, 8, 4, 704, vocab_size=4096, **_SMALL),
    ),
    "llama-32m": Shape(
        _OWN,
        _llama(512, 8, 8, 4, 1408, vocab_size=8192, **_SMALL),
    ),
    "mistral-7b": Shape(
        "mistralai/Mistral-7B-v0.3",
        _mistral(vocab_size=32768, sliding_window=None, rope_parameters=_rope(1000000.0)),
    ),
    "mistral-7b-v0.1": Shape(
        "mistralai/Mistral-7B-v0.1",
        _mistral(vocab_size=32000, sliding_window=4096, rope_parameters=_rope(10000.0)),
    ),
    "mixtral-8x7b": Shape(
        "mistralai/Mixtral-8x7B-v0.1",
        _mistral(vocab_size=32000, sliding_window=None, rope_parameters=_rope(1000000.0), **_MIXTRAL),
    ),
    "qwen2.5-0.5b": Shape(
        "Qwen/Qwen2.5-0.5B",
        _qwen2(
            896, 24, 14, 2, 4864, vocab_size=151936, max_position_embeddings=32768, tie_word_embeddings=True
        ),
    ),
    "qwen2.5-7b": Shape(
        "Qwen/Qwen2.5-7B",
        _qwen2(
            3584, 28, 28, 4, 18944, vocab_size=152064, max_position_embeddings=131072,
            tie_word_embeddings=False,
        ),
    ),
    "qwen3-0.6b": Shape("Qwen/Qwen3-0.6B", _qwen3(1024, 28, 16, 8, 3072, tie_word_embeddings=True)),
    "qwen3-1.7b": Shape("Qwen/Qwen3-1.7B", _qwen3(2048, 28, 16, 8, 6144, tie_word_embeddings=True)),
    "qwen3-4b": Shape("Qwen/Qwen3-4B", _qwen3(2560, 36, 32, 8, 9728, tie_word_embeddings=True)),
    "qwen3-8b": Shape("Qwen/Qwen3-8B", _qwen3(4096, 36, 32, 8, 12288)),
    "qwen3-14b": Shape("Qwen/Qwen3-14B", _qwen3(5120, 40, 40, 8, 17408)),
    "qwen3-32b": Shape("Qwen/Qwen3-32B", _qwen3(5120, 64, 64, 8, 25600)),
    "qwen3-30b-a3b": Shape("Qwen/Qwen3-30B-A3B", _qwen3(2048, 48, 32, 4, 6144, **_QWEN3_MOE)),
    "gemma-2-2b": Shape("google/gemma-2-2b-it", _gemma2(2304, 26, 8, 4, 9216, 256, 256)),
    "gemma-2-9b": Shape("google/gemma-2-9b-it", _gemma2(3584, 42, 16, 8, 14336, 256, 256)),
    "gemma-3-1b": Shape("google/gemma-3-1b-it", _GEMMA3_1B),
    "phi-3-mini": Shape("microsoft/Phi-3-mini-4k-instruct", _PHI3_MINI),
    "gpt-oss-20b": Shape("openai/gpt-oss-20b", _gpt_oss(24, 32)),
    "gpt-oss-120b": Shape("openai/gpt-oss-120b", _gpt_oss(36, 128)),
    "gpt2": Shape("openai-community/gpt2", _GPT2),
}  # fmt: skip
