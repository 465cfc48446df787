"""Parameters counted in a model that transformers builds from a config: no weights, no memory, no hub."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tunebatch.models.architecture import Architecture
from tunebatch.models.language_model import LanguageModel
from tunebatch.models.parameters import Parameters


def built_parameters(model: LanguageModel, sizes: Architecture) -> Parameters | None:
    """Of the language model alone; None where transformers cannot build it.

    Attention, experts and the rest of the layers are told apart by the names of the modules.
    """
    built = _built(model)
    if built is None:
        return None
    network, counted = built
    table, head = network.get_input_embeddings().weight, network.get_output_embeddings()
    of_head = set() if head is None else {id(parameter) for parameter in head.parameters()}
    tied = head is None or id(table) in of_head
    found = dict.fromkeys(("embedding", "attention", "experts", "mlp", "norms", "head"), 0)
    for parameter, name in counted.items():
        part = "head" if id(parameter) in of_head and parameter is not table else _part(name)
        if parameter is table:
            part = "embedding"
        elif part not in ("head", "embedding") and parameter.ndim < 2:
            part = "norms"  # and biases, which are as few and as wide
        found[part] += parameter.numel()
    idle_share = 1 - sizes.experts_per_token / sizes.num_experts if sizes.num_experts else 0.0
    return Parameters(
        embedding=found["embedding"],
        attention=found["attention"],
        mlp=found["mlp"] + found["experts"],
        norms=found["norms"],
        head=found["head"],
        tied_head=table.numel() if tied else 0,
        experts=found["experts"],
        idle_experts=round(found["experts"] * idle_share),
    )


def _part(name: str) -> str:
    if ".experts." in name:
        return "experts"
    if any(word in name for word in ("embed_positions", "position_embed", ".wpe.")):
        return "embedding"
    return "attention" if "attn" in name or "attention" in name else "mlp"


def _built(model: LanguageModel) -> tuple[Any, dict[Any, str]] | None:
    """A model, and the names of those of its parameters that are the decoder's."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    if model.made is None:
        return None
    alone = _on_meta(AutoModelForCausalLM, model.made.get_text_config(decoder=True))
    if alone is not None:
        return alone, _names([alone])
    whole = _on_meta(AutoModelForImageTextToText, model.made)
    if whole is None:
        return None
    return whole, _names([whole.get_decoder(), whole.get_output_embeddings()])


def _on_meta(auto_class: Any, config: Any) -> Any:
    import torch

    try:
        with torch.device("meta"):
            return auto_class.from_config(config)
    # Model code raises classes of many kinds over what its config lacks.
    except Exception:
        return None


def _names(modules: Iterable[Any]) -> dict[Any, str]:
    present = (module for module in modules if module is not None)
    return {parameter: name for module in present for name, parameter in module.named_parameters()}
