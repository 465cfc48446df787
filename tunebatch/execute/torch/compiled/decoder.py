"""A whole Llama-like decoder in few calls: merged projections, fused element-wise kernels.

transformers' modules make about 60 small tensor operations a layer; with a few sequences of a small
model these, not the arithmetic, are what a step takes. The same weights run here in eight calls a layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import psutil
import torch
import torch.nn.functional as F
from torch import Tensor

from tunebatch.execute.torch.attention.base import StepContext, Variant
from tunebatch.execute.torch.attention.compiled import Compiled
from tunebatch.execute.torch.compiled.linear import Linear
from tunebatch.execute.torch.compiled.pointers import ELEMENTS
from tunebatch.execute.torch.compiled.rotary import Rotation
from tunebatch.execute.torch.compiled.rows import add_rms_norm, silu_mul

# Pre-norm decoders with RMS norm, rotary embedding and a SiLU gate, whose modules have Llama's names.
LLAMA_LIKE = {"llama", "mistral", "qwen2", "qwen3"}
# Weights may be kept transposed or packed too; a model that fills the memory goes without.
COPIED_SHARE = 0.25


@dataclass(frozen=True, slots=True)
class _Layer:
    index: int
    input_norm: Tensor
    qkv: Linear
    output: Linear
    rotation: Rotation
    variant: Variant
    mlp_norm: Tensor
    gate_up: Linear
    down: Linear


class CompiledDecoder:
    """Computes what a transformers model computes, from its own weights.

    The merged projections are views of one tensor that replaces the model's own, so the model itself goes
    on working and weighs no more. Make one with `compiled_decoder`.
    """

    def __init__(self, model: Any, attention: Compiled, max_context: int) -> None:
        config, body = model.config, model.model
        weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
        copy = weights < COPIED_SHARE * psutil.virtual_memory().available
        self._attention = attention
        self._embedding: Tensor = body.embed_tokens.weight
        self._head = Linear(model.lm_head.weight, model.lm_head.bias, copy)
        self._norm, self._eps = body.norm.weight.float(), config.rms_norm_eps
        self._kv_heads: int = config.num_key_value_heads
        self._heads: int = config.num_attention_heads
        self._intermediate: int = config.intermediate_size
        cos, sin = _rotation_table(body.rotary_emb, max_context)
        self._layers = [self._layer(layer, cos, sin, copy) for layer in body.layers]

    @torch.inference_mode()
    def __call__(self, input_ids: Tensor, sampled_at: Tensor, step: StepContext) -> Tensor:
        """Logits ``[sampled, vocabulary]`` of the tokens at ``sampled_at`` of a packed step ``[tokens]``."""
        return self._head(self._last_hidden(input_ids, sampled_at, step))

    @torch.inference_mode()
    def highest(self, input_ids: Tensor, sampled_at: Tensor, step: StepContext) -> Tensor:
        """See `forward.FindsHighest`."""
        return self._head.highest(self._last_hidden(input_ids, sampled_at, step))

    def _last_hidden(self, input_ids: Tensor, sampled_at: Tensor, step: StepContext) -> Tensor:
        hidden = F.embedding(input_ids, self._embedding)
        normed = torch.empty_like(hidden)
        num_tokens = hidden.shape[0]
        gated = hidden.new_empty(num_tokens, self._intermediate)
        sizes = [self._heads, self._kv_heads, self._kv_heads]
        num_heads = sum(sizes)
        delta: Tensor | None = None
        for layer in self._layers:
            add_rms_norm(hidden, delta, layer.input_norm, self._eps, normed)
            qkv = layer.qkv(normed).view(num_tokens, num_heads, -1)
            q, k, v = qkv.split_with_sizes(sizes, 1)
            attended = self._attention.attend(q, k, v, layer.index, layer.variant, step, layer.rotation)
            delta = layer.output(attended.view(num_tokens, -1))
            add_rms_norm(hidden, delta, layer.mlp_norm, self._eps, normed)
            silu_mul(layer.gate_up(normed), gated)
            delta = layer.down(gated)
        if sampled_at.shape[0] != num_tokens:
            hidden, delta = hidden[sampled_at], None if delta is None else delta[sampled_at]
        normed = torch.empty_like(hidden)
        add_rms_norm(hidden, delta, self._norm, self._eps, normed)
        return normed

    def _layer(self, layer: Any, cos: Tensor, sin: Tensor, copy: bool) -> _Layer:
        attention, mlp = layer.self_attn, layer.mlp
        norms = (getattr(attention, name, None) for name in ("q_norm", "k_norm"))
        query_norm, key_norm = (None if norm is None else norm.weight.float() for norm in norms)
        return _Layer(
            index=attention.layer_idx,
            input_norm=layer.input_layernorm.weight.float(),
            qkv=_merged(copy, attention.q_proj, attention.k_proj, attention.v_proj),
            output=Linear(attention.o_proj.weight, attention.o_proj.bias, copy),
            rotation=Rotation(cos, sin, query_norm, key_norm, self._eps),
            variant=Variant(attention.scaling, _window(attention)),
            mlp_norm=layer.post_attention_layernorm.weight.float(),
            gate_up=_merged(copy, mlp.gate_proj, mlp.up_proj),
            down=Linear(mlp.down_proj.weight, mlp.down_proj.bias, copy),
        )


def compiled_decoder(model: Any, attention: Compiled, max_context: int) -> CompiledDecoder | None:
    """The model's forward in compiled kernels, or None where it is no Llama-like decoder on a CPU."""
    config = model.config
    if config.model_type not in LLAMA_LIKE or getattr(config, "hidden_act", None) != "silu":
        return None
    if model.device.type != "cpu" or model.dtype not in ELEMENTS:
        return None
    with torch.no_grad():
        return CompiledDecoder(model, attention, max_context)


def _merged(copy: bool, *projections: Any) -> Linear:
    weight = torch.cat([projection.weight for projection in projections])
    bias = None
    if projections[0].bias is not None:
        bias = torch.cat([projection.bias for projection in projections])
    first = 0
    for projection in projections:
        rows = slice(first, first + len(projection.weight))
        projection.weight.data = weight[rows]
        if bias is not None:
            projection.bias.data = bias[rows]
        first = rows.stop
    return Linear(weight, bias, copy)


def _rotation_table(rotary: Any, max_context: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of every position, ``[positions, rotated / 2]``, as the model computes them."""
    positions = torch.arange(max_context)[None]
    tables = rotary(torch.zeros(1, 1), positions)
    halves = (table[0, :, : table.shape[-1] // 2].float().contiguous() for table in tables)
    return tuple(halves)


def _window(attention: Any) -> int | None:
    if hasattr(attention, "sliding_window"):
        return attention.sliding_window
    # Mistral's layers read it from the config; Llama's have none, whatever stands there.
    return attention.config.sliding_window if attention.config.model_type == "mistral" else None
