"""From a packed step to logits: by the model's own modules, or by kernels that compute the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from tunebatch.execute.torch.attention.base import AttentionBackend, StepContext

# (input ids [tokens], places of the sampled ones [sampled], the step) -> logits [sampled, vocabulary]
Forward = Callable[[Tensor, Tensor, StepContext], Tensor]


def transformers_forward(model: Any, backend: AttentionBackend) -> Forward:
    """Unmodified model code on a paged KV cache; see `attention.base.attention_forward`."""

    def forward(input_ids: Tensor, sampled_at: Tensor, step: StepContext) -> Tensor:
        out = model(
            input_ids=input_ids[None],
            position_ids=step.positions[None],
            use_cache=False,
            logits_to_keep=sampled_at,
            step_context=step,
            backend=backend,
        )
        return out.logits[0]

    return forward


def choose_forward(model: Any, backend: AttentionBackend, max_context: int) -> tuple[str, Forward]:
    """The fastest forward for a model and backend, and its name for result files."""
    if backend.name == "compiled":
        # Not above: a GPU is served without numba.
        from tunebatch.execute.torch.attention.compiled import Compiled
        from tunebatch.execute.torch.compiled.decoder import compiled_decoder

        assert isinstance(backend, Compiled)
        decoder = compiled_decoder(model, backend, max_context)
        if decoder is not None:
            return "compiled", decoder
    return "transformers", transformers_forward(model, backend)
