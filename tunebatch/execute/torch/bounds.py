"""What a model's config says of how far its sequences go: context, window, and what ends them."""

from __future__ import annotations

from typing import Any


def max_context(config: Any) -> int:
    """Most tokens of a sequence."""
    limit: Any = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", 2048)
    rope = getattr(config, "rope_parameters", None) or {}
    if isinstance(rope, dict) and rope.get("rope_type") in ("longrope", "dynamic"):
        # These change their frequencies with the longest position in the batch, so that a request's
        # tokens would depend on its neighbours; below this length they do not.
        limit = min(limit, int(rope.get("original_max_position_embeddings", limit)))
    return int(limit)


def window(config: Any) -> int | None:
    """How far back tokens see, if less than the context; the shortest window where layers differ."""
    found = [
        getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size", "window_size")
    ]
    windows = [int(window) for window in found if isinstance(window, int) and window > 0]
    return min(windows) if windows and getattr(config, "use_sliding_window", True) else None


def eos_tokens(network: Any) -> frozenset[int]:
    """Those that end a text."""
    eos = getattr(network.generation_config, "eos_token_id", None)
    if eos is None:
        eos = network.config.get_text_config().eos_token_id
    return frozenset([eos] if isinstance(eos, int) else eos or ())
