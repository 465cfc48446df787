"""A model of a published shape with random weights: right for speed, meaningless for text."""

from __future__ import annotations

from typing import Any

import torch

from tunebatch.models.shapes import Config

_SEED = 0
# Blocks that add less than the embedding brings: what 16 bits round stays 1 % of the largest logit over 32
# layers. At the scales of a trained model's start it is 3 %, as much as a wrong mask.
_GAIN, _EMBEDDED = 0.5, 4.0


@torch.no_grad()
def random_network(config: Config, dtype: torch.dtype, device: str) -> Any:
    """Builds a transformers model on the device, in its dtype from the start; the same weights at each call.

    No token ends a text: there is no telling when random weights would.

    Args:
        config: In Hugging Face's keys, see ``models.shapes``.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    # What was published in fewer bits is made in the dtype asked for.
    made = AutoConfig.for_model(**{key: config[key] for key in config if key != "quantization_config"})
    made.initializer_range = _GAIN * made.hidden_size**-0.5
    with torch.device("meta"):
        network: Any = AutoModelForCausalLM.from_config(made, dtype=dtype, attn_implementation="eager")
    network.to_empty(device=device)
    network.tie_weights()
    with torch.random.fork_rng():
        torch.manual_seed(_SEED)
        network.initialize_weights()  # buffers too
        _loud_embedding(network)
        _signed_norm(network)
    if device == "cuda":
        torch.cuda.empty_cache()  # the head that was tied
    network.config.eos_token_id = network.generation_config.eos_token_id = None
    return network.eval()


def _loud_embedding(network: Any) -> None:
    embedding = network.get_input_embeddings()
    size = embedding(torch.zeros(1, dtype=torch.long, device=network.device)).float().square().mean().sqrt()
    embedding.weight.mul_(_EMBEDDED / size)


def _signed_norm(network: Any) -> None:
    """Flips half of the last norm's weights: with a tied head the likeliest token were the last one again."""
    body = network.base_model
    weight = (body.norm if hasattr(body, "norm") else body.ln_f).weight
    flipped = torch.rand(weight.shape, device=weight.device) < 0.5
    # Gemma's norms multiply by 1 + weight.
    weight.copy_(torch.where(flipped, -1.0 if weight.any() else -2.0, weight))
