"""What a draft model will take, known from its config before the KV cache of its target is sized."""

from __future__ import annotations

from pathlib import Path

from tunebatch.execute.torch.checkpoint import locate, read_config
from tunebatch.execute.torch.model_error import ModelError
from tunebatch.measure.shape_room import Need, need
from tunebatch.models import bundled_draft
from tunebatch.models.architecture import ConfigError, architecture
from tunebatch.models.hub import hub_answers
from tunebatch.models.named_shape import named_shape

# Half the bytes make a draft step cheaper, and what it rounds costs no token.
DRAFT_DTYPE = "bfloat16"
# Of new prompts, in one step; who does not fit has no drafts in this step.
MOST_TOKENS = 8192


def checkpoint_of(draft: str) -> str:
    """``bundled`` is the bundled target's draft."""
    return str(bundled_draft()) if draft == "bundled" else draft


def draft_need(draft: str) -> Need | None:
    """Weights, keys and values, and the largest step of a draft model, predicted.

    Returns:
        None where that cannot be told, be it that it is no model: its own load then says why.
    """
    shape = named_shape(draft)
    try:
        sizes = shape.sizes if shape is not None else architecture(_config(checkpoint_of(draft)))
    except (ModelError, ConfigError):
        return None
    return need(sizes, DRAFT_DTYPE, step_tokens=MOST_TOKENS)


def _config(model: str) -> dict[str, object]:
    path, shown = locate(model)
    silent_hub = not Path(path).is_dir() and not hub_answers()
    config: dict[str, object] = read_config(path, shown, silent_hub).to_dict()
    return config
