"""How the modules of each ``model_type`` differ from Llama's.

With what its config class takes for keys that a config leaves out (transformers 5.23,
``models/*/configuration_*.py``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Windowed = Literal["never", "all", "alternate", "pattern", "if asked"]


@dataclass(frozen=True, slots=True)
class Family:
    """How the modules of a ``model_type`` differ from Llama's.

    Attributes:
        qkv_bias: Whether queries, keys and values have biases, or the key that says so.
        output_bias: The same of attention's output.
        mlp_bias: The same of the MLP.
        bias_default: What an absent key says.
        norms: Norms of a layer.
        norm_bias: A norm has a bias besides its weight.
        qk_norm: Queries and keys are normalized by head, or over the whole projection.
        gated: The MLP has a gate.
        mlp_copies: Tensors of the MLP's width that exist at once in its forward.
        grouped: Query heads may share KV heads; otherwise a config's number of those is not heeded.
        position_rows: Rows of a learned position table beyond the context; None: there is no table.
        tied: The output head is the embedding, unless the config says otherwise.
        expert_width: The key of an expert's width; None: a layer has one MLP and no experts.
        expert_bias: Experts and router have biases.
        sinks: A learned logit per query head takes part in the softmax.
        windowed: Which layers see a window only, where no ``layer_types`` say so.
        window: Its width where the config says nothing.
        head_dim: Width of a head where the config says nothing; None: hidden size over heads.
        names: The config's own names of Llama's keys.
    """

    qkv_bias: bool | str = False
    output_bias: bool | str = False
    mlp_bias: bool | str = False
    bias_default: bool = False
    norms: int = 2
    norm_bias: bool = False
    qk_norm: Literal["", "head", "projection"] = ""
    gated: bool = True
    mlp_copies: int = 3
    grouped: bool = True
    position_rows: int | None = None
    tied: bool = False
    expert_width: str | None = None
    expert_bias: bool = False
    sinks: bool = False
    windowed: Windowed = "never"
    window: int | None = None
    head_dim: int | None = None
    names: Mapping[str, str] = field(default_factory=dict)


_BIAS = "attention_bias"
_GPT2_NAMES = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions",
    "intermediate_size": "n_inner",
}
FAMILIES: dict[str, Family] = {
    "llama": Family(qkv_bias=_BIAS, output_bias=_BIAS, mlp_bias="mlp_bias"),
    "granite": Family(qkv_bias=_BIAS, output_bias=_BIAS, mlp_bias="mlp_bias"),
    "smollm3": Family(qkv_bias=_BIAS, output_bias=_BIAS, mlp_bias="mlp_bias", tied=True),
    "mistral": Family(windowed="all", window=4096),
    "mixtral": Family(windowed="all", expert_width="intermediate_size"),
    "phi3": Family(windowed="all", mlp_copies=4),
    "olmo2": Family(qkv_bias=_BIAS, output_bias=_BIAS, qk_norm="projection"),
    "qwen2": Family(qkv_bias=True, windowed="if asked", window=4096),
    "qwen3": Family(
        qkv_bias=_BIAS, output_bias=_BIAS, qk_norm="head", windowed="if asked", window=4096, head_dim=128
    ),
    "qwen3_moe": Family(
        qkv_bias=_BIAS, output_bias=_BIAS, qk_norm="head", expert_width="moe_intermediate_size"
    ),
    "gemma": Family(qkv_bias=_BIAS, output_bias=_BIAS, tied=True, head_dim=256),
    "gemma2": Family(
        qkv_bias=_BIAS, output_bias=_BIAS, norms=4, tied=True, windowed="alternate", window=4096, head_dim=256
    ),
    "gemma3_text": Family(
        qkv_bias=_BIAS, output_bias=_BIAS, norms=4, qk_norm="head", tied=True, windowed="pattern",
        window=4096, head_dim=256,
    ),
    "gpt_oss": Family(
        qkv_bias=_BIAS, output_bias=_BIAS, bias_default=True, expert_bias=True, sinks=True, mlp_copies=9,
        expert_width="intermediate_size", windowed="alternate", window=128, head_dim=64,
    ),
    "starcoder2": Family(
        qkv_bias="use_bias", output_bias="use_bias", mlp_bias="use_bias", bias_default=True, norm_bias=True,
        gated=False, mlp_copies=2, tied=True, windowed="all",
    ),
    "gpt_neox": Family(
        qkv_bias=_BIAS, output_bias=_BIAS, mlp_bias=True, bias_default=True, norm_bias=True, gated=False,
        mlp_copies=2, grouped=False,
    ),
    "gpt2": Family(
        qkv_bias=True, output_bias=True, mlp_bias=True, norm_bias=True, gated=False, mlp_copies=2,
        grouped=False, position_rows=0, tied=True, names=_GPT2_NAMES,
    ),
    "opt": Family(
        qkv_bias="enable_bias", output_bias="enable_bias", mlp_bias="enable_bias", bias_default=True,
        norm_bias=True, gated=False, mlp_copies=2, grouped=False, position_rows=2, tied=True,
        names={"intermediate_size": "ffn_dim"},
    ),
}  # fmt: skip
