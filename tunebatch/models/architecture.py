"""What a Hugging Face config says about a decoder's size, read without transformers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tunebatch.models.families import FAMILIES, Family
from tunebatch.models.unservable import why_unservable

_DTYPES = ("float32", "bfloat16", "float16")
# Beyond any model, below what makes sums of products overflow or lists of layers long.
_MOST, _MOST_LAYERS = 2**31 - 1, 10_000


class ConfigError(ValueError):
    """A config that cannot be planned with, and why, in one line."""


class NotCountedError(ConfigError):
    """A decoder it may be, but its parameters do not follow from its sizes."""


@dataclass(frozen=True, slots=True)
class Latent:
    """What a layer keeps of a token where keys and values are made from it when they are read.

    Multi-head latent attention (DeepSeek-AI, "DeepSeek-V2", 2024, arXiv:2405.04434, section 2.1).

    Attributes:
        rank: Numbers that keys and values of all heads are made from (``kv_lora_rank``).
        rope: Numbers of the rotated key that all heads share (``qk_rope_head_dim``).
    """

    rank: int
    rope: int

    @property
    def width(self) -> int:
        return self.rank + self.rope


@dataclass(frozen=True, slots=True)
class Architecture:
    """The sizes of a decoder.

    Attributes:
        kind: ``model_type``.
        heads: Query heads of a layer.
        kv_heads: Heads of its keys and values: as many (MHA), fewer (GQA) or one (MQA).
        intermediate: Width of the MLP, or of one expert.
        windows: For each layer how many tokens it sees back, its own included; None: all.
        dtype: Of the published weights, or of what of them is not quantized.
        quantized: What the published weights are quantized to: ``mxfp4`` (the experts alone), ``fp8``,
            ``int8``, ``int4``, or the config's own name of a method that is not counted; None: they are not.
        num_experts: Of a layer; 0: one MLP.
        experts_per_token: How many of them a token goes through.
        latent: What its cache keeps of a token in place of keys and values; None: those.
    """

    kind: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    max_context: int
    windows: tuple[int | None, ...]
    tied: bool
    dtype: str
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    num_experts: int = 0
    experts_per_token: int = 0
    quantized: str | None = None
    latent: Latent | None = None

    @property
    def family(self) -> Family:
        """Llama's where the kind is not among those whose parameters are counted."""
        return FAMILIES.get(self.kind, FAMILIES["llama"])


def architecture(config: Mapping[str, Any]) -> Architecture:
    """The sizes that a ``config.json`` describes.

    Raises:
        NotCountedError: Its parameters cannot be counted, or it is a part of a larger model.
        ConfigError: An architecture that cannot be served, or a key that is missing or impossible.
    """
    kind = _kind(config)
    return decoder_sizes(kind, FAMILIES[kind], config)


def decoder_sizes(
    kind: str, family: Family, config: Mapping[str, Any], latent: Latent | None = None
) -> Architecture:
    """The sizes under the keys that the family has for them.

    Raises:
        ConfigError: A key is missing or impossible.
    """
    layers = _whole(config, family, "num_hidden_layers", most=_MOST_LAYERS)
    hidden = _whole(config, family, "hidden_size")
    heads = _whole(config, family, "num_attention_heads")
    num_experts, experts_per_token = _experts(config, family)
    return Architecture(
        kind=kind,
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=_kv_heads(config, family, heads),
        head_dim=_head_dim(config, family, hidden, heads),
        intermediate=_intermediate(config, family, hidden),
        vocab=_whole(config, family, "vocab_size"),
        max_context=_whole(config, family, "max_position_embeddings"),
        windows=_windows(config, family, layers),
        tied=bool(config.get("tie_word_embeddings", family.tied)),
        dtype=_dtype(config),
        qkv_bias=_says(config, family, family.qkv_bias),
        output_bias=_says(config, family, family.output_bias),
        mlp_bias=_says(config, family, family.mlp_bias),
        num_experts=num_experts,
        experts_per_token=experts_per_token,
        quantized=_quantized(config),
        latent=latent,
    )


def _kind(config: Mapping[str, Any]) -> str:
    kind = config.get("model_type")
    if not isinstance(kind, str):
        raise ConfigError("no model_type in the config; is it a Hugging Face config.json?")
    encoder_decoder = bool(config.get("is_encoder_decoder", False))
    why = why_unservable(kind, encoder_decoder=encoder_decoder, multimodal=False)
    if why is not None:
        raise ConfigError(why)
    multimodal = "vision_config" in config or "audio_config" in config
    why = why_unservable(kind, encoder_decoder=encoder_decoder, multimodal=multimodal)
    if why is not None:
        raise NotCountedError(why)
    if kind not in FAMILIES:
        raise NotCountedError(
            f"the parameters of model_type {kind!r} cannot be counted; known: {', '.join(sorted(FAMILIES))}"
        )
    if kind == "opt" and not (
        config.get("do_layer_norm_before", True)
        and config.get("word_embed_proj_dim") in (None, config.get("hidden_size"))
    ):
        raise NotCountedError("an opt with projected embeddings or norms behind its layers is not counted")
    if kind == "qwen3_moe" and (
        config.get("mlp_only_layers")
        or config.get("decoder_sparse_step", 1) != 1
        or config.get("use_sliding_window")
    ):
        raise NotCountedError("a qwen3_moe with a window, or with layers without experts, is not counted")
    return kind


def _whole(config: Mapping[str, Any], family: Family, key: str, least: int = 1, most: int = _MOST) -> int:
    name = family.names.get(key, key)
    if name not in config and key not in config:
        raise ConfigError(f"no {name} in the config")
    value = config.get(name, config.get(key))
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ConfigError(f"{name} is {value!r}, must be a whole number from {least} to {most}")
    return value


def _kv_heads(config: Mapping[str, Any], family: Family, heads: int) -> int:
    if not family.grouped or config.get("num_key_value_heads") is None:
        return heads
    kv_heads = _whole(config, family, "num_key_value_heads")
    if heads % kv_heads:
        near = min((n for n in range(1, heads + 1) if heads % n == 0), key=lambda n: abs(n - kv_heads))
        raise ConfigError(
            f"num_key_value_heads is {kv_heads}, must divide the {heads} query heads; the nearest is {near}"
        )
    return kv_heads


def _head_dim(config: Mapping[str, Any], family: Family, hidden: int, heads: int) -> int:
    if config.get("head_dim") is not None:
        return _whole(config, family, "head_dim")
    if family.head_dim is not None:
        return family.head_dim
    if hidden % heads:
        raise ConfigError(
            f"hidden_size {hidden} is no multiple of the {heads} heads, and there is no head_dim"
        )
    return hidden // heads


def _intermediate(config: Mapping[str, Any], family: Family, hidden: int) -> int:
    if family is FAMILIES["gpt2"] and config.get("n_inner") is None:
        return 4 * hidden
    return _whole(config, family, family.expert_width or "intermediate_size")


def _experts(config: Mapping[str, Any], family: Family) -> tuple[int, int]:
    if family.expert_width is None:
        return 0, 0
    # Published configs have either name, and transformers 5 saves the first.
    key = "num_local_experts" if "num_local_experts" in config else "num_experts"
    count, used = _whole(config, family, key), _whole(config, family, "num_experts_per_tok")
    if used > count:
        raise ConfigError(f"num_experts_per_tok is {used}, must be at most the {count} experts")
    return count, used


def _windows(config: Mapping[str, Any], family: Family, layers: int) -> tuple[int | None, ...]:
    if family.windowed == "never" and "layer_types" not in config:
        return (None,) * layers
    window = config.get("sliding_window", family.window)
    if window is None or (family.windowed == "if asked" and not config.get("use_sliding_window", False)):
        return (None,) * layers
    width = _whole({"sliding_window": window}, family, "sliding_window")
    types = config.get("layer_types")
    if types is None:
        return tuple(width if _is_windowed(config, family, layer) else None for layer in range(layers))
    if not isinstance(types, list) or len(types) != layers:
        raise ConfigError(f"layer_types must name each of the {layers} layers")
    return tuple(width if kind == "sliding_attention" else None for kind in types)


def _is_windowed(config: Mapping[str, Any], family: Family, layer: int) -> bool:
    if family.windowed == "alternate":
        return layer % 2 == 0
    if family.windowed == "pattern":
        return (layer + 1) % _whole(
            {"sliding_window_pattern": 6, **config}, family, "sliding_window_pattern"
        ) > 0
    if family.windowed == "if asked":
        return layer >= _whole({"max_window_layers": 28, **config}, family, "max_window_layers", least=0)
    return True


def _says(config: Mapping[str, Any], family: Family, rule: bool | str) -> bool:
    return rule if isinstance(rule, bool) else bool(config.get(rule, family.bias_default))


def _dtype(config: Mapping[str, Any]) -> str:
    named = config.get("dtype") or config.get("torch_dtype") or "float32"
    dtype = str(named).removeprefix("torch.")
    if dtype not in _DTYPES:
        raise ConfigError(f"dtype is {dtype!r}, must be one of {', '.join(_DTYPES)}")
    return dtype


def _quantized(config: Mapping[str, Any]) -> str | None:
    said = config.get("quantization_config")
    if said is None:
        return None
    method = said.get("quant_method") if isinstance(said, Mapping) else None
    if not isinstance(method, str):
        return "a format without a name"
    if method in ("gptq", "awq") and said.get("bits") in (4, 8):
        return f"int{said['bits']}"
    return method
