"""Random models that take no time to make: one shape for all architectures that have Llama's knobs."""

from __future__ import annotations

from typing import Any

import torch
import transformers

SHAPE: dict[str, Any] = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 128,
}
# Kernels are compiled for a head size, a group and a block size: who keeps to one of each shares them.
BLOCK_SIZE = 4


def tiny(kind: str = "llama", **config: Any) -> Any:
    """The same random weights at each call."""
    torch.manual_seed(0)
    made = transformers.AutoConfig.for_model(kind, **{**SHAPE, **config})
    return transformers.AutoModelForCausalLM.from_config(made).eval()
