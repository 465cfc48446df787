"""Shapes, first weights, saving and loading of the two bundled models."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tunebatch.models import corpus


def llama_config(hidden: int, layers: int, heads: int, kv_heads: int, intermediate: int) -> LlamaConfig:
    """A Llama of the pair: head width 32, tied embeddings, the shared vocabulary and context."""
    return LlamaConfig(
        vocab_size=corpus.VOCAB_SIZE,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=32,
        intermediate_size=intermediate,
        tie_word_embeddings=True,
        max_position_embeddings=corpus.CONTEXT,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        bos_token_id=corpus.EOS_ID,
        eos_token_id=corpus.EOS_ID,
        pad_token_id=corpus.EOS_ID,
    )


def target_config() -> LlamaConfig:
    """Deep and narrow: many layers to run in sequence, few weights to ship."""
    return llama_config(hidden=160, layers=20, heads=4, kv_heads=2, intermediate=448)


def draft_config() -> LlamaConfig:
    """Two layers, the fewest that can learn to copy from the prompt, at a tenth of the target's depth."""
    return llama_config(hidden=160, layers=2, heads=8, kv_heads=2, intermediate=640)


def new_model(config: LlamaConfig) -> LlamaForCausalLM:
    """A freshly initialized model whose blocks start as the identity, which a deep narrow stack needs."""
    model = LlamaForCausalLM(config)
    std = config.hidden_size**-0.5
    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        torch.nn.init.zeros_(attention.o_proj.weight)
        torch.nn.init.zeros_(mlp.down_proj.weight)
        for linear in (mlp.gate_proj, mlp.up_proj, attention.q_proj, attention.k_proj, attention.v_proj):
            torch.nn.init.normal_(linear.weight, std=std)
    return model


def save_weights(model: LlamaForCausalLM, folder: Path, dtype: torch.dtype) -> None:
    """Write a copy in ``dtype`` as ``from_pretrained`` reads it; the live weights are left as they are."""
    shipped = LlamaForCausalLM(model.config).to(dtype)
    shipped.load_state_dict(model.state_dict())
    shipped.generation_config.eos_token_id = corpus.EOS_ID
    shipped.generation_config.pad_token_id = corpus.EOS_ID
    shipped.save_pretrained(folder)


def load_float32(folder: Path) -> LlamaForCausalLM:
    """A saved model in float32 and evaluation mode, as the CPU backend runs it."""
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
