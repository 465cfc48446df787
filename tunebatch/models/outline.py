"""The sizes of a decoder whose parameters do not follow from them: enough to size its KV cache.

Taken for granted is what decoders do: each layer keeps a key and a value of ``num_key_value_heads`` heads, or
what `Latent` says. Configs whose keys tell of something else are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunebatch.models.architecture import Architecture, ConfigError, Latent, decoder_sizes
from tunebatch.models.families import Family

# Layers that share a cache, have heads of another size, or keep more than keys and values.
_OTHER_LAYOUTS = (
    *("num_kv_shared_layers", "global_head_dim", "num_global_key_value_heads", "swa_num_key_value_heads"),
    *("index_head_dim", "cross_attention_layers", "attention_chunk_size"),
)
_LAYER_TYPES = {"full_attention", "sliding_attention"}


def outline(config: Mapping[str, Any]) -> Architecture:
    """The sizes that a config under Llama's names describes, whatever its kind.

    Raises:
        ConfigError: It is no decoder, keeps its cache in another layout, or lacks a key.
    """
    kind = str(config["model_type"])
    _check_layout(kind, config)
    made = dict(config)
    latent = _latent(kind, made)
    if latent is None:
        made["num_key_value_heads"] = _kv_heads(made)
    else:  # of the keys and values that would be made from it
        made["num_key_value_heads"] = made.get("num_attention_heads")
        made["head_dim"] = latent.rope + int(made.get("qk_nope_head_dim") or 0)
    # Some classes have a window of 0 where there is none.
    if not made.get("sliding_window") or made.get("use_sliding_window") is False:
        made["sliding_window"] = None
    if not made.get("intermediate_size") and isinstance(made.get("hidden_size"), int):
        made["intermediate_size"] = 4 * made["hidden_size"]
    made = {key: value for key, value in made.items() if value is not None}
    return decoder_sizes(kind, _family(made), made, latent)


def _family(config: Mapping[str, Any]) -> Family:
    expert_width = None
    if "num_experts" in config and "num_experts_per_tok" in config:
        expert_width = "moe_intermediate_size" if "moe_intermediate_size" in config else "intermediate_size"
    return Family(windowed="all" if "sliding_window" in config else "never", expert_width=expert_width)


def _check_layout(kind: str, config: Mapping[str, Any]) -> None:
    if config.get("is_decoder") is False:
        raise ConfigError(f"the config of this {kind} says that it is no decoder; only those can be served")
    unknown = sorted({str(one) for one in config.get("layer_types") or ()} - _LAYER_TYPES)
    told = [key for key in _OTHER_LAYOUTS if config.get(key)]
    if config.get("v_head_dim") and not config.get("kv_lora_rank"):
        told.append("v_head_dim")  # values narrower than keys
    for key in (*told, *unknown):
        raise ConfigError(f"the KV layout of model_type {kind!r} is not known: its config has {key}")


def _kv_heads(config: Mapping[str, Any]) -> Any:
    """The older Falcons and GPT-BigCode say in a word that there is one.

    Of the newer Falcons transformers keeps a copy for each query head; what is counted is what there is.
    """
    if config.get("multi_query") and not config.get("new_decoder_architecture"):
        return 1
    return config.get("num_key_value_heads", config.get("num_kv_heads", config.get("num_attention_heads")))


def _latent(kind: str, config: Mapping[str, Any]) -> Latent | None:
    if config.get("kv_lora_rank") is None:
        return None
    for key in ("kv_lora_rank", "qk_rope_head_dim"):
        value = config.get(key)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigError(f"{key} of this {kind} is {value!r}, must be a whole number from 1")
    return Latent(config["kv_lora_rank"], config["qk_rope_head_dim"])
