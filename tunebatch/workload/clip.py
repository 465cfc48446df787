"""Making a request fit into a context."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Room:
    """The most tokens that prompt and output of one request may have, and what sets that limit."""

    tokens: int
    of: str

    def __str__(self) -> str:
        return f"{self.of} of {self.tokens} tokens"


def room(max_context: int, kv_tokens: int | None) -> Room:
    """The smaller of the context and, where it is known, the KV cache, which must hold a request alone."""
    if kv_tokens is not None and kv_tokens < max_context:
        return Room(kv_tokens, "KV cache")
    return Room(max_context, "context")


def fitting_lengths(
    prompt_tokens: int, output_tokens: int, limit: Room, clip: bool, place: str
) -> tuple[int, int]:
    """As `clipped_lengths`, where clipping is allowed.

    Args:
        place: Where the request comes from, for the message.

    Raises:
        ValueError: The request does not fit and may not be clipped.
    """
    lengths = clipped_lengths(prompt_tokens, output_tokens, limit.tokens)
    if lengths != (prompt_tokens, output_tokens) and not clip:
        raise ValueError(
            f"{place}: {prompt_tokens} prompt + {output_tokens} output tokens exceed the {limit.of} of "
            f"{limit.tokens}; expected at most that, or clip = true"
        )
    return lengths


def clipped_lengths(prompt_tokens: int, output_tokens: int, max_context: int) -> tuple[int, int]:
    """Prompt and output tokens that together fit into the context, each at least 1.

    A request that fits is left alone. Otherwise the output keeps what the prompt leaves over, or half
    of the context if that is more; the prompt gets the rest. So long prompts stay long, and no
    output shrinks to nothing behind one.

    Raises:
        ValueError: The context is below 2 tokens.
    """
    if max_context < 2:
        raise ValueError(f"a context of {max_context} tokens holds no request; must be at least 2")
    if prompt_tokens + output_tokens <= max_context:
        return prompt_tokens, output_tokens
    output = min(output_tokens, max(max_context // 2, max_context - prompt_tokens))
    return max_context - output, output
