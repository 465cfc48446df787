"""From a packed step to logits: by the model's own modules, or by kernels that compute the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeGuard

from torch import Tensor, nn

from tunebatch.execute.torch import fused
from tunebatch.execute.torch.attention.base import AttentionBackend, StepContext
from tunebatch.execute.torch.merged import MergedProjection, merge, pays

# (input ids [tokens], places of the sampled ones [sampled], the step) -> logits [sampled, vocabulary]
Forward = Callable[[Tensor, Tensor, StepContext], Tensor]


class FindsHighest(Protocol):
    """A forward that finds the most probable tokens without their logits."""

    def highest(self, input_ids: Tensor, sampled_at: Tensor, step: StepContext) -> Tensor:
        """The most probable token ``[sampled]`` of each sampled row, of equals the first."""
        ...


def finds_highest(forward: object) -> TypeGuard[FindsHighest]:
    """Whether a forward is one of those."""
    return hasattr(forward, "highest")


def transformers_forward(
    model: Any, backend: AttentionBackend, merged: Sequence[MergedProjection] = ()
) -> Forward:
    """Unmodified model code on a paged KV cache; see `attention.base.attention_forward`.

    Args:
        merged: Of the model's projections, which must not keep what a step that failed left.
    """

    def forward(input_ids: Tensor, sampled_at: Tensor, step: StepContext) -> Tensor:
        try:
            out = model(
                input_ids=input_ids[None],
                position_ids=step.positions[None],
                use_cache=False,
                logits_to_keep=sampled_at,
                step_context=step,
                backend=backend,
            )
        except BaseException:
            for projection in merged:
                projection.forget()
            raise
        return out.logits[0]

    return forward


def choose_forward(
    model: Any,
    backend: AttentionBackend,
    max_context: int,
    mergeable: Sequence[Sequence[nn.Linear]] = (),
) -> tuple[dict[str, Any], Forward]:
    """The fastest forward for a model and backend, and what result files tell of it.

    Whether torch.compile makes a faster one has to be measured; see `compile_choice`.

    Args:
        mergeable: See `merged.watched`.
    """
    if backend.name == "compiled":
        # Not above: a GPU is served without numba.
        from tunebatch.execute.torch.attention.compiled import Compiled
        from tunebatch.execute.torch.compiled.decoder import compiled_decoder

        assert isinstance(backend, Compiled)
        decoder = compiled_decoder(model, backend, max_context)
        if decoder is not None:
            return {"forward": "compiled"}, decoder
    merged = merge(mergeable) if pays(model.device, model.dtype) else []
    told: dict[str, Any] = {"forward": "transformers", "merged_projections": len(merged)}
    if fused.pays(model.device, backend.name):
        told |= fused.fuse(model)
    return told, transformers_forward(model, backend, merged)
