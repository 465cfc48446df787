"""What a model's layers ask of attention, found out by running it once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tunebatch.execute.torch.attention.base import KvCache, StepContext, Variant
from tunebatch.execute.torch.attention.reference import Reference


@dataclass(frozen=True, slots=True)
class Asked:
    """Of one kind of layer.

    Attributes:
        variant: Without the sinks themselves.
        sinks: There are some.
    """

    heads: int
    kv_heads: int
    dim: int
    value_dim: int
    dtype: torch.dtype
    variant: Variant
    sinks: bool


class Recorder(Reference):
    """The reference, which notes what every layer asks for."""

    def __init__(self) -> None:
        self.layers: dict[int, Asked] = {}

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, layer: int, variant: Variant, step: StepContext
    ) -> Tensor:
        """See `AttentionBackend`."""
        self.layers[layer] = Asked(
            query.shape[1],
            key.shape[1],
            key.shape[2],
            value.shape[2],
            key.dtype,
            replace(variant, sinks=None),
            variant.sinks is not None,
        )
        return super().attend(query, key, value, layer, variant, step)


@torch.inference_mode()
def asked_by(model: Any) -> list[Asked]:
    """What the layers of a model ask for, in their order; runs two tokens.

    Raises:
        RuntimeError: The architecture does not pass on what attention needs.
    """
    from tunebatch.execute.torch.forward import transformers_forward

    recorder = Recorder()
    two = torch.arange(2, device=model.device)
    step = StepContext(
        cache=KvCache(1, 2, recorder.new_pools),
        positions=two,
        query_start=2 * two,
        context_lens=two[1:] + 1,
        block_tables=two[None, :1],
        cache_slots=two,
        slices=[(0, 2, 0)],
        num_slice_tokens=2,
        max_context_len=2,
        context_sum=2,
    )
    transformers_forward(model, recorder)(two, two[1:], step)
    return [recorder.layers[layer] for layer in sorted(recorder.layers)]
