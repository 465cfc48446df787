"""The decoder that a config describes: the whole, or the language model within it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tunebatch.models.architecture import ConfigError
from tunebatch.models.unservable import why_unservable

# What configs of several parts call the part that writes.
_PARTS = ("text_config", "llm_config", "language_config")
_OTHER_PARTS = ("vision_config", "audio_config", "speech_config")
# Said of the whole model, and meant for its language model too.
_OF_ALL = ("dtype", "torch_dtype", "quantization_config", "tie_word_embeddings")
_DECODERS = ("CausalLM", "LMHead", "ConditionalGeneration")
# Names other than Llama's for the same number, which config classes do not translate.
_ALIASES = {
    "max_position_embeddings": ("max_seq_len", "seq_length", "n_positions", "n_ctx"),
    "num_key_value_heads": ("num_kv_heads",),
    "intermediate_size": ("ffn_hidden_size", "n_inner", "ffn_dim"),
    "num_experts": ("num_local_experts", "n_routed_experts", "moe_num_experts"),
    "num_experts_per_tok": ("moe_k", "moe_topk"),
}
# What config classes translate when it is asked for by attribute.
_TRANSLATED = ("hidden_size", "num_hidden_layers", "num_attention_heads", "head_dim", "vocab_size")


@dataclass(frozen=True, slots=True)
class LanguageModel:
    """A decoder, perhaps of a larger model.

    Attributes:
        config: Its keys, those of its sizes under Llama's names too.
        part_of: ``model_type`` of what it is a part of; None: it is the whole.
        made: The config that transformers makes of the whole, or where it takes only that of the part; None:
            it does not know its kind, or does not take its keys.
    """

    config: Mapping[str, Any]
    part_of: str | None
    made: Any

    @property
    def kind(self) -> str:
        return str(self.config["model_type"])


def language_model(config: Mapping[str, Any]) -> LanguageModel:
    """The decoder of a ``config.json``, with what transformers takes for keys that are left out.

    Configs of several parts leave most of them out. No code is run but that of transformers.

    Raises:
        ConfigError: There is none in it, or none that a KV cache can serve.
    """
    outer = _kind(config)
    _refuse(outer, config)
    part: Mapping[str, Any] = next(
        (config[name] for name in _PARTS if isinstance(config.get(name), Mapping)), {}
    )
    several = bool(part) or any(name in config for name in _OTHER_PARTS)
    made = _made_by_transformers(config) or _made_by_transformers(part)
    if made is None:
        own = {key: value for key, value in config.items() if key not in (*_PARTS, *_OTHER_PARTS)}
        found = {**own, **part}
        _check_is_decoder(config)
    else:
        decoder = made.get_text_config(decoder=True)
        several = several or decoder is not made
        found = _keys(decoder)
        _refuse(outer, {"is_encoder_decoder": getattr(made, "is_encoder_decoder", False)})
    found |= {key: part.get(key, config.get(key)) for key in _OF_ALL if key in part or key in config}
    _refuse(_kind(found), found)
    return LanguageModel(found, outer if several else None, made)


def _kind(config: Mapping[str, Any]) -> str:
    kind = config.get("model_type")
    if not isinstance(kind, str):
        raise ConfigError("no model_type in the config; is it a Hugging Face config.json?")
    return kind


def _refuse(kind: str, config: Mapping[str, Any]) -> None:
    # Images and sound are no hindrance: the part that writes is a decoder like others.
    why = why_unservable(
        kind, encoder_decoder=bool(config.get("is_encoder_decoder", False)), multimodal=False
    )
    if why is not None:
        raise ConfigError(why)


def _check_is_decoder(config: Mapping[str, Any]) -> None:
    names = config.get("architectures") or []
    if names and not any(word in str(name) for name in names for word in _DECODERS):
        raise ConfigError(f"{names[0]} is no language model; only decoders can be served")


def _made_by_transformers(config: Mapping[str, Any]) -> Any:
    import logging

    logging.getLogger("transformers").setLevel(logging.ERROR)
    from transformers import AutoConfig

    taken = {key: config[key] for key in config if key not in ("auto_map", "quantization_config")}
    try:
        return AutoConfig.for_model(**taken)
    # Config classes check their keys with exceptions of many kinds.
    except Exception:
        return None


def _keys(made: Any) -> dict[str, Any]:
    """Of a config object, under its own names and Llama's."""
    found: dict[str, Any] = dict(made.to_dict())
    for name in _TRANSLATED:
        found[name] = _value(made, name)
    for name, others in _ALIASES.items():
        values = (_value(made, other) for other in (name, *others))
        found[name] = next((value for value in values if value is not None), None)
    return {key: value for key, value in found.items() if value is not None}


def _value(made: Any, name: str) -> Any:
    try:
        return getattr(made, name, None)
    # transformers has an exception of its own for what each layer has another number of.
    except Exception:
        raise ConfigError(
            f"the KV layout of model_type {made.model_type!r} is not known: its layers differ in {name}"
        ) from None
