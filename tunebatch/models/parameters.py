"""How many parameters an architecture has, counted from its sizes."""

from __future__ import annotations

from dataclasses import dataclass

from tunebatch.models.architecture import Architecture


@dataclass(frozen=True, slots=True)
class Parameters:
    """Parameters by part of the model.

    Attributes:
        embedding: Of the tokens, and of the positions where they are learned.
        attention: Of all layers.
        mlp: Of all layers; with experts, all of them and their routers.
        norms: All of them.
        head: From hidden state to logits; 0 where it is the embedding.
        tied_head: What the embedding holds for the head.
        experts: Of ``mlp``, the matrices of all experts, without biases and routers.
        idle_experts: Of ``mlp``, what one token does not go through.
    """

    embedding: int
    attention: int
    mlp: int
    norms: int
    head: int
    tied_head: int
    experts: int
    idle_experts: int

    @property
    def total(self) -> int:
        return self.embedding + self.attention + self.mlp + self.norms + self.head

    @property
    def read_per_step(self) -> int:
        """What a step reads from memory: all but the embedding, of which it looks up a row a token."""
        return self.total - self.embedding + self.tied_head

    @property
    def active(self) -> int:
        """What one token is multiplied with, two floating-point operations each."""
        return self.read_per_step - self.idle_experts


def count_parameters(model: Architecture) -> Parameters:
    """The parameters of a causal language model; tied weights count once."""
    family = model.family
    table = model.vocab * model.hidden
    positions = (
        0 if family.position_rows is None else (model.max_context + family.position_rows) * model.hidden
    )
    expert, router = _mlp(model), 0
    experts = model.num_experts
    if experts:
        router = experts * (model.hidden + family.expert_bias)
    return Parameters(
        embedding=table + positions,
        attention=model.layers * _attention(model),
        mlp=model.layers * (expert * max(1, experts) + router),
        norms=(model.layers * family.norms + 1) * model.hidden * (1 + family.norm_bias)
        + model.layers * _qk_norms(model),
        head=0 if model.tied else table,
        tied_head=table if model.tied else 0,
        experts=model.layers * experts * _matrices(model),
        idle_experts=model.layers * expert * (experts - model.experts_per_token),
    )


def _attention(model: Architecture) -> int:
    queries, keys = model.heads * model.head_dim, model.kv_heads * model.head_dim
    weights = 2 * model.hidden * (queries + keys)
    biases = model.qkv_bias * (queries + 2 * keys) + model.output_bias * model.hidden
    return weights + biases + model.family.sinks * model.heads


def _mlp(model: Architecture) -> int:
    """Of a layer, or of one of its experts."""
    has_bias = model.mlp_bias or model.family.expert_bias
    return _matrices(model) + has_bias * ((1 + model.family.gated) * model.intermediate + model.hidden)


def _matrices(model: Architecture) -> int:
    """Of a layer's MLP, or of one of its experts."""
    return (2 + model.family.gated) * model.hidden * model.intermediate


def _qk_norms(model: Architecture) -> int:
    if model.family.qk_norm == "head":
        return 2 * model.head_dim
    return (model.heads + model.kv_heads) * model.head_dim if model.family.qk_norm == "projection" else 0
